"""The fused engine: all views of a batch in one call of csrc/cpu/augment.cpp, without Python's lock.

It applies the same table of parameters as the other engines, with torchvision's arithmetic: the resize gives the bits
of torchvision's for uint8 images, colours and blur differ from it by rounding of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.engine_torchvision import Images, check_channels
from ssl_fast.data.outputs import Spares, check_out
from ssl_fast.data.resample import blur_kernel_size
from ssl_fast.data.views import COLUMNS, View
from ssl_fast.ops.cpp import DTYPES, module, why_not_built

_JITTER = ("brightness", "contrast", "saturation", "hue")  # in the numbering of the table's order
_RGB_ONLY = 2  # from this operation on: identities for one channel
_MAX_BLUR_RADIUS = 256  # csrc/cpu/isa/augment.h
_SPARE_BATCHES = 4  # whose memory is kept for the next ones: more than a loop lets go of between two calls


def unavailable() -> str | None:
    """Why the fused engine cannot run here; None when it can."""
    return why_not_built("_cpu")


class FusedEngine:
    """Makes views of uint8 images on the CPU, by `torch.get_num_threads()` threads; the bits do not depend on how many.

    Views that nobody holds any more give their memory to later ones (`outputs.Spares`).

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
        self._settings = settings(self.views, channels)
        self._spares = Spares(_SPARE_BATCHES * len(self.views))

    def __call__(
        self,
        images: Images,
        table: Tensor,  # [N, V, P], from views.draw
        out: Sequence[Tensor] | None = None,  # V tensors like those returned, to be written and returned
    ) -> tuple[Tensor, ...]:  # V tensors [N, C, S, S], normalised
        """Applies the table.

        Raises:
            ValueError: images that are not uint8 [H, W, C], or a table or `out` that does not fit them.
        """
        check_images(images, self.channels)
        images, addresses = _located(images)  # they live until the call has returned
        extents = extents_of(images)
        table = table.to("cpu", torch.float32).contiguous()
        check_table(table, extents, len(self.views))
        num = len(extents)
        outs = self._outs(num) if out is None else self._checked(out, num)
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

    def _outs(self, num: int) -> tuple[Tensor, ...]:
        shapes = [(num, self.channels, view.size, view.size) for view in self.views]
        return tuple(self._spares.empty(shape, self.dtype, self.memory_format) for shape in shapes)

    def _checked(self, out: Sequence[Tensor], num: int) -> tuple[Tensor, ...]:
        return check_out(out, self.views, num, self.channels, self.dtype, torch.device("cpu"), self.memory_format)


def settings(views: Sequence[View], channels: int) -> tuple[list[Any], ...]:
    """What the kernels are told of the views: sizes to thresholds [V], mean and std [V, C]; see csrc/ops.h.

    Raises:
        ValueError: a view that they cannot make.
    """
    for view in views:
        refuse_policy(view, "fused")
    return (
        [view.size for view in views],
        [view.interpolation == "bicubic" for view in views],
        [_operations(view, channels) for view in views],
        [_blur_radius(view) for view in views],
        [view.solarize_threshold for view in views],
        [number for view in views for number in _per_channel(view.mean, channels)],
        [number for view in views for number in _per_channel(view.std, channels)],
    )


def refuse_policy(view: View, engine: str) -> None:
    """Raises ValueError for a view with a policy."""
    if view.policy:
        raise ValueError(
            f"policy: expected '' for the {engine} engine, got {view.policy!r}; torchvision's has policies"
        )


def _operations(view: View, channels: int) -> int:
    """Bit i: the colour jitter has operation i."""
    if view.jitter == 0:
        return 0
    return sum(1 << i for i, name in enumerate(_JITTER) if getattr(view, name) > 0 and (channels == 3 or i < _RGB_ONLY))


def _blur_radius(view: View) -> int:
    if view.blur == 0:
        return 0
    radius = blur_kernel_size(view.size) // 2
    if radius > _MAX_BLUR_RADIUS:
        raise ValueError(f"blur: expected a view of at most {20 * _MAX_BLUR_RADIUS} pixels, got {view.size}")
    return radius


def _per_channel(numbers: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return numbers * channels if len(numbers) == 1 else numbers


def check_images(images: Any, channels: int) -> None:
    """Raises ValueError unless `images` are uint8 [N, H, W, channels], or a list of [H, W, channels].

    They may be arrays or tensors.
    """
    together = isinstance(images, np.ndarray | Tensor)
    for part in [images] if together else images:
        dtype = str(part.dtype).removeprefix("torch.")
        if dtype != "uint8" or part.ndim != 3 + together or part.shape[-1] != channels:
            expected = f"[{'N, ' if together else ''}H, W, {channels}]"
            raise ValueError(f"images: expected uint8 {expected}, got {dtype} {list(part.shape)}")


def extents_of(
    images: Any,  # N arrays or tensors [H, W, C], or one [N, H, W, C]
) -> NDArray[np.int64]:  # [N, 2] their H, W
    """The sizes of decoded images."""
    if isinstance(images, np.ndarray | Tensor):
        return np.full((len(images), 2), images.shape[1:3], dtype=np.int64)
    return np.array([image.shape[:2] for image in images], dtype=np.int64).reshape(-1, 2)


def _located(
    images: Images,
) -> tuple[Images, NDArray[np.int64]]:  # contiguous images, their addresses [N]
    if isinstance(images, np.ndarray):
        images = np.ascontiguousarray(images)
        return images, images.ctypes.data + np.arange(len(images), dtype=np.int64) * images[:1].nbytes
    images = [np.ascontiguousarray(image) for image in images]
    return images, np.array([image.__array_interface__["data"][0] for image in images], dtype=np.int64)


def check_table(
    table: Tensor,  # [N, V, P]
    extents: NDArray[np.int64],  # [N, 2]
    num_views: int,
) -> None:
    """Raises ValueError unless the table is of these images and views, its crops inside the images."""
    if table.shape != (len(extents), num_views, len(COLUMNS)):
        expected = [len(extents), num_views, len(COLUMNS)]
        raise ValueError(f"table: expected shape {expected}, got {list(table.shape)}")
    rows = table.numpy()
    corner, extent = rows[..., 0:2], rows[..., 2:4]
    if not ((corner >= 0) & (extent >= 1) & (corner + extent <= extents[:, None])).all():
        raise ValueError("table: expected crops of at least one pixel inside their images")
