"""Multi-layer perceptrons on top of the backbone: projector and predictor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from ssl_fast.models.norm import group_norm

NORMS = ("batch", "group", "none")


def _norm_layer(kind: str, size: int, affine: bool = True) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm1d(size, affine=affine)]
    return [group_norm(size, affine)] if kind == "group" else []


def mlp(
    sizes: Sequence[int],
    *,
    norm: str = "batch",
    last_norm: bool = False,
    last_affine: bool = True,
    last_bias: bool = True,
) -> nn.Sequential:
    """Linear layers with norm and ReLU between them: [N, sizes[0]] -> [N, sizes[-1]].

    SimCLR: `mlp([F, F, 128], last_norm=True)` (official code), MoCo v2: `mlp([F, F, 128], norm="none")`,
    BYOL: `mlp([F, 4096, 256])` for projector and `mlp([256, 4096, 256])` for predictor.
    A linear layer that a norm follows has no bias: the norm would remove it.

    Args:
        sizes: input, hidden and output widths, two or more.
        norm: "batch", "group" (independent of the batch) or "none", after each hidden layer.
        last_norm: put the norm after the last layer too.
        last_affine: whether that norm has scales and shifts of its own.
        last_bias: bias of the last layer; ignored where `last_norm` removes it.

    Raises:
        ValueError: on fewer than two sizes, a size below 1, or an unknown norm.

    Reference: Chen et al. 2020, arXiv:2002.05709, Section 2.1; Grill et al. 2020, arXiv:2006.07733, Section 3.2.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes needs two or more positive widths (input, hidden ..., output), got {list(sizes)}")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    layers: list[nn.Module] = []
    last = len(sizes) - 2
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        normed = norm != "none" and (i < last or last_norm)
        layers.append(nn.Linear(inputs, outputs, bias=not normed and (i < last or last_bias)))
        layers += _norm_layer(norm, outputs, last_affine or i < last) if normed else []
        layers += [nn.ReLU(inplace=True)] if i < last else []
    return nn.Sequential(*layers)
