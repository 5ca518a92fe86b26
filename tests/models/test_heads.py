"""Projector and predictor: the layers that the papers have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_fast.models.heads import DINOHead, mlp


def layers(head: nn.Sequential) -> str:
    names = {nn.Linear: "linear", nn.BatchNorm1d: "batch", nn.GroupNorm: "group", nn.ReLU: "relu"}
    names[nn.GELU] = "gelu"
    return " ".join(
        names[type(layer)]
        + ("+bias" if isinstance(layer, nn.Linear) and layer.bias is not None else "")
        + ("-affine" if getattr(layer, "affine", True) is False else "")
        for layer in head
    )


@pytest.mark.parametrize(
    ("sizes", "options", "expected"),
    [
        ([64, 64, 32], {"last_norm": True}, "linear batch relu linear batch"),  # SimCLR
        ([64, 64, 64, 32], {"last_norm": True}, "linear batch relu linear batch relu linear batch"),
        ([64, 64, 32], {"norm": "none"}, "linear+bias relu linear+bias"),  # MoCo v2
        ([64, 128, 32], {}, "linear batch relu linear+bias"),  # BYOL
        ([64, 128, 32], {"last_bias": False}, "linear batch relu linear"),
        ([64, 128, 32], {"last_norm": True, "last_affine": False}, "linear batch relu linear batch-affine"),  # SimSiam
        ([64, 128, 32], {"norm": "group", "last_norm": True}, "linear group relu linear group"),
        ([64, 128, 32], {"norm": "none", "last_norm": True}, "linear+bias relu linear+bias"),
        ([64, 32], {}, "linear+bias"),
        ([64, 64, 32], {"norm": "none", "activation": "gelu"}, "linear+bias gelu linear+bias"),
    ],
)
def test_layers(sizes, options, expected):
    head = mlp(sizes, **options)
    assert layers(head) == expected
    assert head(torch.randn(5, sizes[0])).shape == (5, sizes[-1])


def test_group_norm_makes_rows_independent():
    head = mlp([16, 32, 8], norm="group", last_norm=True).double()
    x = torch.randn(6, 16, dtype=torch.float64)
    assert torch.allclose(torch.cat([head(rows) for rows in x.split(1)]), head(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "norm", "message"),
    [
        ([8], "batch", "two or more"),
        ([8, 0], "batch", "two or more"),
        ([8, 8], "layer", "norm must be one of batch, group, none"),
    ],
)
def test_refusals(sizes, norm, message):
    with pytest.raises(ValueError, match=message):
        mlp(sizes, norm=norm)


@pytest.mark.parametrize("learn_gain", [False, True])
def test_dino_head_is_a_weight_normalised_layer_cut_in_two(learn_gain: bool) -> None:
    torch.manual_seed(0)
    head = DINOHead(16, 32, 8, 50, learn_gain=learn_gain)
    assert layers(head.mlp) == "linear+bias gelu linear+bias gelu linear+bias"
    last = nn.utils.parametrizations.weight_norm(nn.Linear(8, 50, bias=False))
    with torch.no_grad():
        last.parametrizations.weight.original0.fill_(1.0)
        last.parametrizations.weight.original1.copy_(head.last_layer.weight)
        if head.gain is not None:
            lengths = torch.rand(50, 1) + 0.5
            head.gain.copy_(lengths)
            last.parametrizations.weight.original0.copy_(lengths)
    x = torch.randn(6, 16)
    rows, logits = head(x), head(x) @ head.prototypes().T
    assert rows.shape == (6, 8) and torch.allclose(rows.norm(dim=1), torch.ones(6))
    expected = last(rows)
    torch.testing.assert_close(logits, expected)
    (found,) = torch.autograd.grad(logits.square().sum(), head.last_layer.weight, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.square().sum(), last.parametrizations.weight.original1)
    torch.testing.assert_close(found, wanted)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="activation must be one of relu, gelu, got 'tanh'"):
        mlp([8, 8], activation="tanh")
