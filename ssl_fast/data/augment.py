"""`ssl_fast.augment`: views of decoded images without a loader, for any training code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

try:
    import numpy as np
except ImportError as error:
    raise ImportError("ssl_fast.augment needs numpy: pip install numpy") from error
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.engine_fused import FusedEngine, check_images, extents_of, unavailable
from ssl_fast.data.engine_fused_gpu import FusedGpuEngine
from ssl_fast.data.engine_torchvision import Images, TorchvisionEngine
from ssl_fast.data.views import View, draw


def augment(
    images: Any,  # uint8 [N, H, W, C], or N of [H, W, C] of any sizes: arrays or tensors
    views: Sequence[View],  # V
    key: tuple[int, int, Any],  # seed, epoch, and the samples' numbers [N]
    out: Sequence[Tensor] | None = None,  # V tensors like those returned, which share no memory
) -> tuple[Tensor, ...]:  # V tensors [N, C, S, S] float32, normalised, channels_last in memory
    """Random views of images: crop, antialiased resize, flip, colour jitter, grayscale, blur, solarisation.

    One C++ call on `torch.get_num_threads()` threads; torch and torchvision do the same where the C++ module is not
    built, and for views with a `policy`. Views of tensors on a GPU are made there, by CUDA kernels on the current
    stream. A view is a function of (seed, epoch, sample number, place in `views`) and the image: the same in any batch,
    order, process or number of threads.

    Args:
        images: decoded images; nothing is copied where their memory is contiguous.
        views: what to make: `ssl_fast.data.views.View`, or a preset of `ssl_fast.data.view_presets`.
        key: (seed, epoch, index): a new epoch gives new views; index may be a list, an array or a tensor.
        out: written and returned instead of new tensors, e.g. those of an earlier call: their memory need not be taken
            from the system and cleared again.

    Raises:
        ValueError: images that are not uint8, not of one number of channels or not on one device, an index of another
            length, or an `out` that does not fit.
        RuntimeError: images on a GPU, and the CUDA module was not built.

    Example:
        >>> import torch, ssl_fast
        >>> from ssl_fast.data.view_presets import simclr
        >>> images = torch.randint(0, 256, (4, 40, 48, 3), dtype=torch.uint8)
        >>> first, second = ssl_fast.augment(images, simclr(size=32), key=(0, 0, range(4)))
        >>> first.shape
        torch.Size([4, 3, 32, 32])
    """
    seed, epoch, index = key
    device = _device(images)
    decoded = _arrays(images) if device.type == "cpu" else images
    numbers = np.asarray(index, dtype=np.int64)
    if numbers.shape != (len(decoded),):
        raise ValueError(f"key: expected {len(decoded)} sample numbers for as many images, got {list(numbers.shape)}")
    channels = _channels(decoded)
    check_images(decoded, channels)
    engine = _engine(views, channels, device)
    table = draw(views, seed, epoch, numbers, extents_of(decoded))
    views_of_them: tuple[Tensor, ...] = engine(decoded, table, out=out)
    return views_of_them


def _device(images: Any) -> torch.device:
    """Where the images are, or the first of them."""
    first = images if isinstance(images, Tensor | np.ndarray) or not len(images) else images[0]
    device = first.device if isinstance(first, Tensor) else torch.device("cpu")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"images: expected tensors on the CPU or a CUDA device, got one on {device}")
    return device


def _engine(views: Sequence[View], channels: int, device: torch.device) -> Any:
    if device.type != "cpu":
        return FusedGpuEngine(views, channels, device)
    by_torchvision = unavailable() or any(view.policy for view in views)
    return (TorchvisionEngine if by_torchvision else FusedEngine)(views, channels)


def _arrays(images: Any) -> Images:
    """The images as one array or several, over the same memory."""
    return _array(images) if isinstance(images, Tensor | np.ndarray) else [_array(image) for image in images]


def _array(image: Any) -> NDArray[np.uint8]:
    if isinstance(image, Tensor) and image.device.type != "cpu":
        raise ValueError(f"images: expected all on the CPU, like the first, got one on {image.device}")
    return image.numpy() if isinstance(image, Tensor) else np.asarray(image)


def _channels(images: Any) -> int:
    """C; an empty list counts as RGB."""
    together = isinstance(images, np.ndarray | Tensor)
    shape = images.shape if together else images[0].shape if len(images) else (1, 1, 3)
    return int(shape[-1]) if len(shape) else 0
