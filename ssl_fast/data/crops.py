"""The boxes that views are cut from, after torchvision's RandomResizedCrop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_fast.ops.cpp import module, why_not_built

ATTEMPTS = 10  # draws of area and ratio before the crop falls back
NUM_UNIFORMS = 2 * ATTEMPTS + 2  # area and ratio of each attempt, then the position of the corner

Range = tuple[float, float]
Reals = NDArray[np.float64]


def random_boxes(
    scale: Range,
    ratio: Range,
    numbers: Reals,  # [N, >= 22] in [0, 1); rows contiguous
    sizes: Reals,  # [N, 2] H, W
) -> Reals:  # [N, 4] top, left, height, width
    """The first of ten (area, ratio) draws that fits, else a centred box of the nearest ratio."""
    low, high = np.log(ratio[0]), np.log(ratio[1])
    ratios = np.exp(low + (high - low) * numbers[:, 1 : 2 * ATTEMPTS : 2])  # numpy's exp: its last bit is its own
    boxes = (_first_that_fits if why_not_built("_cpu") else _first_that_fits_cpp)(scale, ratios, numbers, sizes)
    missed = np.flatnonzero(boxes[:, 2] == 0)
    if len(missed):
        nearest = _nearest_ratio(ratio, sizes[missed])
        boxes[missed] = np.concatenate([np.floor((sizes[missed] - nearest) / 2), nearest], axis=1)
    return boxes


def centred_boxes(
    scale: Range,
    sizes: Reals,  # [N, 2]
) -> Reals:  # [N, 4]
    """Squares of side min(H, W) * sqrt(scale[1])."""
    side = np.maximum(np.rint(sizes.min(axis=1, keepdims=True) * np.sqrt(scale[1])), 1.0)
    return np.concatenate([np.floor((sizes - side) / 2), side, side], axis=1)


def _first_that_fits(
    scale: Range,
    ratios: Reals,  # [N, 10]
    numbers: Reals,  # [N, >= 22]
    sizes: Reals,  # [N, 2]
) -> Reals:  # [N, 4]; height and width 0 where none fits
    share = scale[0] + (scale[1] - scale[0]) * numbers[:, 0 : 2 * ATTEMPTS : 2]
    area = share * sizes.prod(axis=1)[:, None]
    widths, heights = np.rint(np.sqrt(area * ratios)), np.rint(np.sqrt(area / ratios))
    fits = (widths > 0) & (widths <= sizes[:, 1:]) & (heights > 0) & (heights <= sizes[:, :1])
    rows, first = np.arange(len(sizes)), fits.argmax(axis=1)
    extent = np.stack([heights[rows, first], widths[rows, first]], axis=1) * fits.any(axis=1)[:, None]
    corner = np.floor(numbers[:, 2 * ATTEMPTS : NUM_UNIFORMS] * (sizes - extent + 1.0))
    return np.concatenate([corner, extent], axis=1)


def _first_that_fits_cpp(scale: Range, ratios: Reals, numbers: Reals, sizes: Reals) -> Reals:
    """The same bits from csrc/cpu/crop_boxes.cpp."""
    ratios, sizes = np.ascontiguousarray(ratios), np.ascontiguousarray(sizes)
    boxes = np.empty((len(sizes), 4))
    places = numbers.ctypes.data, ratios.ctypes.data, sizes.ctypes.data
    module().crop_boxes(*places, len(sizes), numbers.strides[0] // 8, ATTEMPTS, *scale, boxes.ctypes.data)
    return boxes


def _nearest_ratio(
    ratio: Range,
    sizes: Reals,  # [N, 2]
) -> Reals:  # [N, 2] height, width of the largest box whose ratio is allowed
    height, width = sizes[:, 0], sizes[:, 1]
    tall = np.where(width / height < ratio[0], np.rint(width / ratio[0]), height)
    wide = np.where(width / height > ratio[1], np.rint(height * ratio[1]), width)
    box: Reals = np.stack([np.minimum(tall, height), np.minimum(wide, width)], axis=1)
    return np.maximum(box, 1.0)
