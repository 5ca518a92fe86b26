"""The fused engine: all views of a batch in one call of csrc/cpu/augment.cpp, without Python's lock.

It applies the same table of parameters as the other engines, with torchvision's arithmetic: the resize gives the bits
of torchvision's for uint8 images, colours and blur differ from it by rounding of float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.engine_torchvision import Images, check_channels
from ssl_fast.data.resample import blur_kernel_size
from ssl_fast.data.views import COLUMNS, View
from ssl_fast.ops.cpp import DTYPES, module, why_not_built

_JITTER = ("brightness", "contrast", "saturation", "hue")  # in the numbering of the table's order
_RGB_ONLY = 2  # from this operation on: identities for one channel
_MAX_BLUR_RADIUS = 256  # csrc/cpu/isa/augment.h


def unavailable() -> str | None:
    """Why the fused engine cannot run here; None when it can."""
    return why_not_built("_cpu")


class FusedEngine:
    """Makes views of uint8 images on the CPU, by `torch.get_num_threads()` threads; the bits do not depend on how many.

    Args:
        views: the views to make, in order.
        channels: C of the images.
        dtype: of the views: float32, float16 or bfloat16.
        memory_format: torch.channels_last, or torch.contiguous_format for NCHW in memory.

    Raises:
        ValueError: a view's normalisation, colour operations or blur do not fit, or another dtype.
        RuntimeError: the C++ module was not built.
    """

    def __init__(
        self,
        views: Sequence[View],
        channels: int,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        self.views, self.channels, self.dtype, self.memory_format = tuple(views), channels, dtype, memory_format
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
        if reason := unavailable():
            raise RuntimeError(f"data.engine: fused cannot be used: {reason}")
        for view in self.views:
            check_channels(view, channels)
        self._settings = (
            [view.size for view in self.views],
            [view.interpolation == "bicubic" for view in self.views],
            [_operations(view, channels) for view in self.views],
            [_blur_radius(view) for view in self.views],
            [view.solarize_threshold for view in self.views],
            [number for view in self.views for number in _per_channel(view.mean, channels)],
            [number for view in self.views for number in _per_channel(view.std, channels)],
        )

    def __call__(
        self,
        images: Images,
        table: Tensor,  # [N, V, P], from views.draw
    ) -> tuple[Tensor, ...]:  # V tensors [N, C, S, S], normalised
        """Applies the table.

        Raises:
            ValueError: images that are not uint8 [H, W, C], or a table that does not fit them.
        """
        check_images(images, self.channels)
        images, addresses, extents = _located(images)  # they live until the call has returned
        table = table.to("cpu", torch.float32).contiguous()
        _check_table(table, extents, len(self.views))
        num = len(extents)
        outs = tuple(
            torch.empty((num, self.channels, v.size, v.size), dtype=self.dtype, memory_format=self.memory_format)
            for v in self.views
        )
        module().augment(
            addresses.ctypes.data,
            extents.ctypes.data,
            table.data_ptr(),
            [out.data_ptr() for out in outs],
            *self._settings,
            num,
            self.channels,
            DTYPES[self.dtype],
            self.memory_format == torch.channels_last,
            torch.get_num_threads(),
        )
        return outs


def _operations(view: View, channels: int) -> int:
    """Bit i: the colour jitter has operation i."""
    if view.jitter == 0:
        return 0
    return sum(1 << i for i, name in enumerate(_JITTER) if getattr(view, name) > 0 and (channels == 3 or i < _RGB_ONLY))


def _blur_radius(view: View) -> int:
    radius = blur_kernel_size(view.size) // 2
    if view.blur > 0 and radius > _MAX_BLUR_RADIUS:
        raise ValueError(f"blur: expected a view of at most {20 * _MAX_BLUR_RADIUS} pixels, got {view.size}")
    return min(radius, _MAX_BLUR_RADIUS)


def _per_channel(numbers: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return numbers * channels if len(numbers) == 1 else numbers


def check_images(images: Images, channels: int) -> None:
    """Raises ValueError unless `images` are uint8 [N, H, W, channels], or a list of [H, W, channels]."""
    together = isinstance(images, np.ndarray)
    parts: list[NDArray[np.uint8]] = [images] if isinstance(images, np.ndarray) else list(images)
    for part in parts:
        if part.dtype != np.uint8 or part.ndim != 3 + together or part.shape[-1] != channels:
            expected = f"[{'N, ' if together else ''}H, W, {channels}]"
            raise ValueError(f"images: expected uint8 {expected}, got {part.dtype} {list(part.shape)}")


def _located(
    images: Images,
) -> tuple[Images, NDArray[np.int64], NDArray[np.int64]]:  # contiguous images, their addresses [N], their H, W [N, 2]
    if isinstance(images, np.ndarray):
        images = np.ascontiguousarray(images)
        num, height, width, _ = images.shape
        addresses = images.ctypes.data + np.arange(num, dtype=np.int64) * images[:1].nbytes
        return images, addresses, np.tile(np.array([[height, width]], dtype=np.int64), (num, 1))
    images = [np.ascontiguousarray(image) for image in images]
    addresses = np.array([image.__array_interface__["data"][0] for image in images], dtype=np.int64)
    return images, addresses, np.array([image.shape[:2] for image in images], dtype=np.int64).reshape(-1, 2)


def _check_table(
    table: Tensor,  # [N, V, P]
    extents: NDArray[np.int64],  # [N, 2]
    num_views: int,
) -> None:
    if table.shape != (len(extents), num_views, len(COLUMNS)):
        expected = [len(extents), num_views, len(COLUMNS)]
        raise ValueError(f"table: expected shape {expected}, got {list(table.shape)}")
    corner, extent = table[..., 0:2], table[..., 2:4]
    limit = torch.from_numpy(extents)[:, None]
    if not bool(((corner >= 0) & (extent >= 1) & (corner + extent <= limit)).all()):
        raise ValueError("table: expected crops of at least one pixel inside their images")
