"""Colour operations on a batch with one factor per sample: the arithmetic of torchvision's v2 functional on floats.

Every operation is in place on x [N, C, H, W], float32 in [0, 1], and works element by element or within one sample,
with no fused multiply-add, so that a sample's bits do not depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_fast.data.views import COLUMN, View

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale


def luma(
    x: Tensor,  # [N, 3, H, W]
) -> Tensor:  # [N, 1, H, W]
    """The grey value of RGB pixels."""
    grey = x[:, 0:1] * _LUMA[0]
    return grey.add_(x[:, 1:2] * _LUMA[1]).add_(x[:, 2:3] * _LUMA[2])


def brightness_(
    x: Tensor,  # [N, C, H, W]
    factor: Tensor,  # [N]
) -> None:
    """x * factor."""
    x.mul_(factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def contrast_(
    x: Tensor,  # [N, C, H, W]
    factor: Tensor,  # [N]
) -> None:
    """Blends with the sample's mean grey value (mean over all channels when C is not 3)."""
    grey = luma(x) if x.shape[1] == 3 else x
    _blend_(x, grey.mean(dim=(1, 2, 3), keepdim=True), factor)


def saturation_(
    x: Tensor,  # [N, 3, H, W]
    factor: Tensor,  # [N]
) -> None:
    """Blends with the grey image."""
    _blend_(x, luma(x), factor)


def _blend_(
    x: Tensor,  # [N, C, H, W]
    other: Tensor,  # [N, 1, H or 1, W or 1]
    factor: Tensor,  # [N]
) -> None:
    factor = factor.view(-1, 1, 1, 1)
    x.mul_(factor).add_(other * (1.0 - factor)).clamp_(0, 1)


def hue_(
    x: Tensor,  # [N, 3, H, W]
    shift: Tensor,  # [N] in [-0.5, 0.5], turns
) -> None:
    """Rotates the hue in HSV space.

    With v = max, c = max - min and h the hue in turns, channel k of the result is
    v - c * clamp(min(t, 4 - t), 0, 1) where t = (n_k + 6 h) mod 6 and n = (5, 3, 1): HSV to RGB without a table.
    """
    red, green, blue = x.unbind(1)  # [N, H, W] each
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    turns = _hue(red, green, blue, value, chroma).add_(shift.view(-1, 1, 1))
    for channel, corner in enumerate((5.0, 3.0, 1.0)):
        t = turns.add(corner / 6.0)
        t.sub_(t.floor()).mul_(6.0)
        t = torch.minimum(t, 4.0 - t).clamp_(0, 1).mul_(chroma)
        torch.sub(value, t, out=x[:, channel])


def _hue(
    red: Tensor,  # [N, H, W]
    green: Tensor,  # [N, H, W]
    blue: Tensor,  # [N, H, W]
    value: Tensor,  # [N, H, W] the maximum
    chroma: Tensor,  # [N, H, W] maximum - minimum
) -> Tensor:  # [N, H, W] hue in turns, in [-1/6, 5/6]; 0 for grey pixels
    inverse = chroma.clamp(min=1e-20).reciprocal_()  # for grey pixels the differences below are 0
    is_red, is_green = value == red, value == green
    hue = torch.where(is_green, (blue - red).mul_(inverse).add_(2.0), (red - green).mul_(inverse).add_(4.0))
    return torch.where(is_red, (green - blue).mul_(inverse), hue).mul_(1.0 / 6.0)


_OPERATIONS: tuple[tuple[str, Callable[[Tensor, Tensor], None]], ...] = (
    ("brightness", brightness_),
    ("contrast", contrast_),
    ("saturation", saturation_),
    ("hue", hue_),
)


def jitter_(
    x: Tensor,  # [N, C, H, W]
    rows: Tensor,  # [N, P] the view's parameters, on the CPU
    view: View,
) -> None:
    """ColorJitter: each sample's operations in its own order. For one channel saturation and hue are identities."""
    wanted = [
        (number, name, operation)
        for number, (name, operation) in enumerate(_OPERATIONS)
        if getattr(view, name) > 0 and (x.shape[1] == 3 or number < 2)
    ]
    if not wanted:
        return
    on = rows[:, COLUMN["jitter"]] > 0
    for step in range(len(_OPERATIONS)):
        order = rows[:, COLUMN[f"order{step}"]]
        for number, name, operation in wanted:
            chosen = (on & (order == number)).nonzero()[:, 0]
            apply_to_(x, chosen, operation, rows[:, COLUMN[name]])


def grayscale_(
    x: Tensor,  # [N, C, H, W]
    rows: Tensor,  # [N, P]
) -> None:
    """Replaces the chosen samples by their grey image; one channel: identity."""
    if x.shape[1] == 3:
        chosen = rows[:, COLUMN["grayscale"]].nonzero()[:, 0].to(x.device)
        if len(chosen):
            x[chosen] = luma(x[chosen]).expand(-1, 3, -1, -1)


def solarize_(
    x: Tensor,  # [N, C, H, W]
    rows: Tensor,  # [N, P]
    threshold: float,
) -> None:
    """Inverts values >= threshold in the chosen samples."""
    chosen = rows[:, COLUMN["solarize"]].nonzero()[:, 0].to(x.device)
    if len(chosen):
        part = x[chosen]
        x[chosen] = torch.where(part >= threshold, 1.0 - part, part)


def apply_to_(
    x: Tensor,  # [N, C, H, W]
    chosen: Tensor,  # [n] row numbers, on the CPU
    operation: Callable[[Tensor, Tensor], None],
    factor: Tensor,  # [N], on the CPU
) -> None:
    """Runs an in-place operation on some rows of x. Which rows is decided on the CPU: a GPU need not be waited for."""
    if len(chosen):
        where = chosen.to(x.device, non_blocking=True)
        part = x[where]
        operation(part, factor[chosen].to(x.device, non_blocking=True))
        x[where] = part
