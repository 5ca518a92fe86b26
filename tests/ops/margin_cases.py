"""Inputs and callables that the tests of the margin losses share."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import adaface, arcface, combined_margin, cosface, curricularface
from ssl_fast.ops.adaface import adaface_reference
from ssl_fast.ops.arcface import arcface_reference
from ssl_fast.ops.curricularface import curricularface_reference
from ssl_fast.ops.margin_softmax import margin_softmax_reference
from ssl_fast.ops.margins import Margin

Loss = Callable[..., Tensor]


def cosface_reference(x: Tensor, weight: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return margin_softmax_reference(x, weight, labels, Margin(m3=0.35), **options)


def combined_reference(x: Tensor, weight: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return margin_softmax_reference(x, weight, labels, Margin(1.2, 0.3, 0.2), **options)


def _with_numbers(function: Loss, **numbers: float) -> Loss:
    return lambda x, *rest, **options: function(
        x, *rest, **{name: torch.tensor(value, device=x.device) for name, value in numbers.items()}, **options
    )


_NORMS, _HARDNESS = {"norm_mean": 1.2, "norm_std": 0.3}, {"hardness": 0.3}
# By name: the op and its reference, both of (x, weight, labels, ...).
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "arcface": (arcface, arcface_reference),
    "straight through": (
        lambda *a, **o: arcface(*a, margin_grad="straight_through", **o),
        lambda *a, **o: arcface_reference(*a, margin_grad="straight_through", **o),
    ),
    "monotone": (
        lambda *a, **o: arcface(*a, monotone=True, margin=1.5, **o),
        lambda *a, **o: arcface_reference(*a, monotone=True, margin=1.5, **o),
    ),
    "cosface": (cosface, cosface_reference),
    "combined": (lambda *a, **o: combined_margin(*a, m1=1.2, m2=0.3, m3=0.2, **o), combined_reference),
    "adaface": (_with_numbers(adaface, **_NORMS), _with_numbers(adaface_reference, **_NORMS)),
    "curricularface": (
        _with_numbers(curricularface, **_HARDNESS),
        _with_numbers(curricularface_reference, **_HARDNESS),
    ),
}


def samples(
    num_rows: int, num_classes: int, dim: int, centres: int = 1, alignment: float = 0.5, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, D] and weight [C, D] or [C, S, D] in float64, with about this cosine to their class; labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_classes, dim) if centres == 1 else (num_classes, centres, dim)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_classes, (num_rows,), generator=generator)
    nearest = weight if centres == 1 else weight[:, 0]
    noise = F.normalize(torch.randn(num_rows, dim, generator=generator, dtype=torch.float64))
    x = alignment * F.normalize(nearest[labels]) + math.sqrt(1 - alignment**2) * noise
    lengths = torch.rand(num_rows, 1, generator=generator, dtype=torch.float64) * 1.5 + 0.5
    return (x * lengths).requires_grad_(), weight.requires_grad_(), labels
