"""`ssl_fast.augment`: views of decoded images without a loader, for any training code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.engine_fused import FusedEngine, check_images, unavailable
from ssl_fast.data.engine_torchvision import Images, TorchvisionEngine
from ssl_fast.data.views import View, draw


def augment(
    images: Any,  # uint8 [N, H, W, C], or N of [H, W, C] of any sizes: arrays or CPU tensors
    views: Sequence[View],  # V
    key: tuple[int, int, Any],  # seed, epoch, and the samples' numbers [N]
) -> tuple[Tensor, ...]:  # V tensors [N, C, S, S] float32, normalised, channels_last in memory
    """Random views of images: crop, antialiased resize, flip, colour jitter, grayscale, blur, solarisation.

    One C++ call on `torch.get_num_threads()` threads; where the C++ module is not built, torch and torchvision do the
    same. A view is a function of (seed, epoch, sample number, place in `views`) and the image: the same in any batch,
    order, process or number of threads.

    Args:
        images: decoded images; nothing is copied where their memory is contiguous.
        views: what to make: `ssl_fast.data.views.View`, or a preset of `ssl_fast.data.view_presets`.
        key: (seed, epoch, index): a new epoch gives new views; index may be a list, an array or a tensor.

    Raises:
        ValueError: images that are not uint8 or not of one number of channels, or an index of another length.

    Example:
        >>> import torch, ssl_fast
        >>> from ssl_fast.data.view_presets import simclr
        >>> images = torch.randint(0, 256, (4, 40, 48, 3), dtype=torch.uint8)
        >>> first, second = ssl_fast.augment(images, simclr(size=32), key=(0, 0, range(4)))
        >>> first.shape
        torch.Size([4, 3, 32, 32])
    """
    seed, epoch, index = key
    arrays = _array(images) if isinstance(images, Tensor | np.ndarray) else [_array(image) for image in images]
    numbers = np.asarray(index, dtype=np.int64)
    if numbers.shape != (len(arrays),):
        raise ValueError(f"key: expected {len(arrays)} sample numbers for as many images, got {list(numbers.shape)}")
    channels = _channels(arrays)
    check_images(arrays, channels)
    table = draw(views, seed, epoch, numbers, np.array([image.shape[:2] for image in arrays]).reshape(-1, 2))
    engine = TorchvisionEngine if unavailable() else FusedEngine
    return engine(views, channels)(arrays, table)


def _array(image: Any) -> NDArray[np.uint8]:
    """The image, or images, as an array over the same memory."""
    if isinstance(image, Tensor) and image.device.type != "cpu":
        raise ValueError(f"images: expected tensors on the CPU, got one on {image.device}")
    return image.numpy() if isinstance(image, Tensor) else np.asarray(image)


def _channels(images: Images) -> int:
    """C; an empty list counts as RGB."""
    first = images if isinstance(images, np.ndarray) else images[0] if images else np.empty((1, 1, 3))
    return int(first.shape[-1]) if first.ndim else 0
