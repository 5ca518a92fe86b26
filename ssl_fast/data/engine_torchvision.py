"""The reference engine: applies the table of parameters with torchvision's arithmetic, vectorised over the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.colour import apply_to_, grayscale_, jitter_, solarize_
from ssl_fast.data.outputs import check_out
from ssl_fast.data.policy_operations import policy_
from ssl_fast.data.resample import blur_, crop_resize
from ssl_fast.data.views import COLUMN, View

Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]  # [N, H, W, C], or N arrays [H, W, C] of any sizes

_CHUNK_ELEMENTS = 1 << 19  # floats worked on at a time: 2 MB stays in the cache
_MATRIX_PIXELS = 96 * 96  # images up to this size are resized by matrix products


class TorchvisionEngine:
    """Makes views of uint8 images on the CPU.

    Args:
        views: the views to make, in order.
        channels: C of the images.

    Raises:
        ValueError: a view's normalisation or colour operations do not fit the number of channels.
    """

    def __init__(self, views: Sequence[View], channels: int) -> None:
        self.views, self.channels = tuple(views), channels
        for view in self.views:
            check_channels(view, channels)

    def __call__(
        self,
        images: Images,
        table: Tensor,  # [N, V, P], from views.draw
        out: Sequence[Tensor] | None = None,  # V tensors like those returned, to be written and returned
    ) -> tuple[Tensor, ...]:  # V tensors [N, C, S, S] float32, normalised, channels_last
        """Applies the table; ValueError when `out` does not fit."""
        num, layout = len(images), torch.channels_last
        if out is None:
            shapes = [(num, self.channels, view.size, view.size) for view in self.views]
            outs = tuple(torch.empty(shape, memory_format=layout) for shape in shapes)
        else:
            outs = check_out(out, self.views, num, self.channels, torch.float32, torch.device("cpu"), layout)
        for position, (view, result) in enumerate(zip(self.views, outs, strict=True)):
            self._view(images, table[:, position], view, result)
        return outs

    def _view(
        self,
        images: Images,
        rows: Tensor,  # [N, P]
        view: View,
        out: Tensor,  # [N, C, S, S]
    ) -> None:
        chunk = max(1, _CHUNK_ELEMENTS // (self.channels * view.size**2))
        for begin in range(0, len(images), chunk):
            end = begin + chunk
            x = _resized(images[begin:end], rows[begin:end], view)
            if view.policy:
                policy_(x, rows[begin:end, COLUMN["operation0"] :])
            finish(x, rows[begin:end], view, out=out[begin:end])


def check_channels(view: View, channels: int) -> None:
    """Raises ValueError when `view` cannot be applied to images of `channels` channels."""
    if len(view.mean) not in (1, channels):
        raise ValueError(f"mean, std: expected 1 or {channels} numbers for {channels} channels, got {len(view.mean)}")
    coloured = view.grayscale > 0 or (view.jitter > 0 and (view.saturation > 0 or view.hue > 0))
    if coloured and channels not in (1, 3):
        expected = f"expected images of 1 or 3 channels, got {channels}"
        raise ValueError(f"saturation, hue, grayscale: {expected}; set the three to 0")
    if view.policy and channels not in (1, 3):
        raise ValueError(f"policy: expected images of 1 or 3 channels, got {channels}")


def _resized(
    images: Images,
    rows: Tensor,  # [N, P]
    view: View,
) -> Tensor:  # [N, C, S, S] float32 in [0, 255]
    if isinstance(images, np.ndarray) and images.shape[1] * images.shape[2] <= _MATRIX_PIXELS:
        flip = rows[:, COLUMN["flip"]]
        return crop_resize(torch.from_numpy(images), rows[:, :4], flip, view.size, view.interpolation)
    return torch.stack([_resized_one(image, row, view) for image, row in zip(images, rows.tolist(), strict=True)])


def _resized_one(
    image: NDArray[np.uint8],  # [H, W, C]
    row: list[float],  # [P]
    view: View,
) -> Tensor:  # [C, S, S] float32 in [0, 255]
    from torchvision.transforms.v2 import InterpolationMode, functional

    top, left, height, width = (int(value) for value in row[:4])
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    mode = InterpolationMode(view.interpolation)
    size = [view.size, view.size]
    result: Tensor = functional.resized_crop(planes, top, left, height, width, size, mode, antialias=True)
    result = result.flip(-1) if row[COLUMN["flip"]] else result
    return result.float().contiguous()


def finish(
    x: Tensor,  # [N, C, S, S] float32 in [0, 255], on any device; overwritten
    rows: Tensor,  # [N, P], on the CPU
    view: View,
    out: Tensor,  # [N, C, S, S] float32
) -> None:
    """What follows the crop, in SimCLR's order: colour jitter, grayscale, blur, solarisation, normalisation."""
    x.div_(255.0)
    if view.jitter > 0:
        jitter_(x, rows, view)
    if view.grayscale > 0:
        grayscale_(x, rows)
    if view.blur > 0:
        apply_to_(x, rows[:, COLUMN["blur"]].nonzero()[:, 0], blur_, rows[:, COLUMN["blur"]])
    if view.solarize > 0:
        solarize_(x, rows, view.solarize_threshold)
    mean, std = (torch.tensor(values, device=x.device).view(1, -1, 1, 1) for values in (view.mean, view.std))
    out.copy_(x.sub_(mean).div_(std))
