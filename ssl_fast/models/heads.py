"""Multi-layer perceptrons on top of the backbone: projector, predictor, and DINO's head with its prototypes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.models.norm import group_norm

NORMS = ("batch", "group", "none")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": partial(nn.ReLU, inplace=True), "gelu": nn.GELU}


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
    activation: str = "relu",
) -> nn.Sequential:
    """Linear layers with norm and activation between them: [N, sizes[0]] -> [N, sizes[-1]].

    SimCLR: `mlp([F, F, 128], last_norm=True)` (official code), MoCo v2: `mlp([F, F, 128], norm="none")`,
    BYOL: `mlp([F, 4096, 256])` for projector and `mlp([256, 4096, 256])` for predictor.
    A linear layer that a norm follows has no bias: the norm would remove it.

    Args:
        sizes: input, hidden and output widths, two or more.
        norm: "batch", "group" (independent of the batch) or "none", after each hidden layer.
        last_norm: put the norm after the last layer too.
        last_affine: whether that norm has scales and shifts of its own.
        last_bias: bias of the last layer; ignored where `last_norm` removes it.
        activation: "relu" or "gelu", after each hidden layer.

    Raises:
        ValueError: on fewer than two sizes, a size below 1, or an unknown norm or activation.

    Reference: Chen et al. 2020, arXiv:2002.05709, Section 2.1; Grill et al. 2020, arXiv:2006.07733, Section 3.2.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes needs two or more positive widths (input, hidden ..., output), got {list(sizes)}")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    last = len(sizes) - 2
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        normed = norm != "none" and (i < last or last_norm)
        layers.append(nn.Linear(inputs, outputs, bias=not normed and (i < last or last_bias)))
        layers += _norm_layer(norm, outputs, last_affine or i < last) if normed else []
        layers += [ACTIVATIONS[activation]()] if i < last else []
    return nn.Sequential(*layers)


class DINOHead(nn.Module):
    """DINO's head up to its last layer, whose logits are left to the loss: [N, F] -> unit rows [N, bottleneck_dim].

    Three linear layers with GELU between them. The last layer's weights are `prototypes()`; `dino_loss` and `ibot_loss`
    take rows and prototypes, and the logits rows @ prototypes^T [N, K] are never there as a whole.

    Args:
        in_dim: F, width of the features.
        hidden_dim: width of the two hidden layers.
        bottleneck_dim: width of the rows.
        num_prototypes: K.
        norm: "batch", "group" or "none", after each hidden layer.
        learn_gain: let the prototypes' lengths be learned; they stay 1 otherwise.

    Raises:
        ValueError: a width below 1, or an unknown norm.

    Reference: Caron et al. 2021, arXiv:2104.14294, Section 3.2 and Appendix C; initial values from the authors' code.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_prototypes: int = 65536,
        *,
        norm: str = "none",
        learn_gain: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = mlp((in_dim, hidden_dim, hidden_dim, bottleneck_dim), norm=norm, activation="gelu")
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.last_layer = nn.Linear(bottleneck_dim, num_prototypes, bias=False)
        self.gain = nn.Parameter(torch.ones(num_prototypes, 1)) if learn_gain else None

    def forward(
        self,
        h: Tensor,  # [N, F]
    ) -> Tensor:  # [N, bottleneck_dim]
        """Rows of unit length, of the MLP's dtype: autocast normalises in fp32 on a GPU, and products would be too."""
        x = self.mlp(h)
        return F.normalize(x, dim=-1).to(x.dtype)

    def prototypes(self) -> Tensor:
        """The last layer's weights, normalised, [K, bottleneck_dim]."""
        unit = F.normalize(self.last_layer.weight, dim=1)
        return unit if self.gain is None else self.gain * unit
