"""The operations of `policies`, applied by torchvision."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssl_fast.data.policies import OPERATIONS

_GROUND = 128.0  # where there is no picture: the grey of AutoAugment's authors


def policy_(
    x: Tensor,  # [N, C, S, S] float32, whole levels of [0, 255]; overwritten
    columns: Tensor,  # [N, 4] operation, magnitude, operation, magnitude
) -> None:
    """Each view's two operations, in order."""
    for view, row in zip(x, columns.tolist(), strict=True):
        if row[0] == row[2] == 0:
            continue
        levels = view.to(torch.uint8)
        for operation, magnitude in (row[:2], row[2:]):
            levels = _applied(levels, OPERATIONS[int(operation)], magnitude)
        view.copy_(levels)


def _applied(
    x: Tensor,  # [C, S, S] uint8
    operation: str,
    magnitude: float,
) -> Tensor:  # [C, S, S] uint8
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    sheared = math.degrees(math.atan(magnitude))
    result: Tensor
    match operation:
        case "identity":
            result = x
        case "shear_x":
            result = _moved(x, shear=[sheared, 0.0], center=[0, 0])
        case "shear_y":
            result = _moved(x, shear=[0.0, sheared], center=[0, 0])
        case "translate_x":
            result = _moved(x, translate=[int(magnitude), 0])
        case "translate_y":
            result = _moved(x, translate=[0, int(magnitude)])
        case "rotate":
            result = F.rotate(x, magnitude, InterpolationMode.BILINEAR, fill=_GROUND)
        case "brightness":
            result = F.adjust_brightness(x, 1.0 + magnitude)
        case "color":
            result = F.adjust_saturation(x, 1.0 + magnitude)
        case "contrast":
            result = F.adjust_contrast(x, 1.0 + magnitude)
        case "sharpness":
            result = F.adjust_sharpness(x, 1.0 + magnitude)
        case "posterize":
            result = F.posterize(x, int(magnitude))
        case "solarize":
            result = F.solarize(x, 255.0 * magnitude)
        case "autocontrast":
            result = F.autocontrast(x)
        case "equalize":
            result = F.equalize(x)
        case "invert":
            result = F.invert(x)
    return result


def _moved(x: Tensor, **how: Any) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode, functional

    still: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    options = {**still, **how, "interpolation": InterpolationMode.BILINEAR, "fill": _GROUND}
    result: Tensor = functional.affine(x, **options)
    return result
