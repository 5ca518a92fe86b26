"""Multi-layer perceptrons on top of the backbone: projector, predictor, and the head of DINO with its prototypes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.models.norm import group_norm

NORMS = ("batch", "group", "none")


def _norm_layer(kind: str, size: int) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm1d(size)]
    return [group_norm(size)] if kind == "group" else []


def mlp(
    sizes: Sequence[int],
    *,
    norm: str = "batch",
    last_norm: bool = False,
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
        layers += _norm_layer(norm, outputs) if normed else []
        layers += [nn.ReLU(inplace=True)] if i < last else []
    return nn.Sequential(*layers)


class DINOHead(nn.Module):
    """The head of DINO, DINOv2 and iBOT: a GELU perceptron to unit rows, and the prototypes of the last layer.

    The logits are rows @ unit prototypes.T, which `dino_loss` and `ibot_loss` compute with `normalize_prototypes=True`
    without ever having them as a whole.

    Attributes:
        prototypes: [K, D], the last layer's weights; used at unit length.

    Args:
        in_features: F.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: D.
        num_prototypes: K.
        num_layers: linear layers up to the bottleneck.
        norm: "batch", "group" or "none", after each hidden layer.

    Raises:
        ValueError: a size below 1, or an unknown norm.

    Reference: Caron et al. 2021, arXiv:2104.14294, section 3.1 and appendix C; initialisation of the authors' code.
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_prototypes: int = 65536,
        num_layers: int = 3,
        norm: str = "none",
    ) -> None:
        super().__init__()
        if min(in_features, hidden_dim, bottleneck_dim, num_prototypes, num_layers) < 1:
            raise ValueError(
                "in_features, hidden_dim, bottleneck_dim, num_prototypes and num_layers must be at least 1, got "
                f"{in_features}, {hidden_dim}, {bottleneck_dim}, {num_prototypes}, {num_layers}"
            )
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        sizes = [in_features, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            hidden = i < num_layers - 1
            linear = nn.Linear(inputs, outputs, bias=not hidden or norm == "none")
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
            layers += [linear, *_norm_layer(norm, outputs), nn.GELU()] if hidden else [linear]
        self.layers = nn.Sequential(*layers)
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim))
        nn.init.kaiming_uniform_(self.prototypes, a=math.sqrt(5))

    def forward(
        self,
        h: Tensor,  # [N, F]
    ) -> Tensor:  # [N, D]
        """Unit rows: what goes into the last layer."""
        return F.normalize(self.layers(h), dim=-1)
