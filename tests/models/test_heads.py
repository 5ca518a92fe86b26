"""Projector and predictor: the layers that the papers have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_fast.models.heads import DINOHead, mlp


def layers(head: nn.Sequential) -> str:
    names = {nn.Linear: "linear", nn.BatchNorm1d: "batch", nn.GroupNorm: "group", nn.ReLU: "relu"}
    return " ".join(
        names[type(layer)] + ("+bias" if isinstance(layer, nn.Linear) and layer.bias is not None else "")
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
        ([64, 128, 32], {"norm": "group", "last_norm": True}, "linear group relu linear group"),
        ([64, 128, 32], {"norm": "none", "last_norm": True}, "linear+bias relu linear+bias"),
        ([64, 32], {}, "linear+bias"),
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


def test_dino_head_has_unit_rows_and_the_papers_layers():
    head = DINOHead(12, hidden_dim=16, bottleneck_dim=8, num_prototypes=20)
    rows = head(torch.randn(5, 12))
    assert rows.shape == (5, 8) and head.prototypes.shape == (20, 8)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    assert [type(layer) for layer in head.layers] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert head.layers[0].weight.std().item() == pytest.approx(0.02, rel=0.2) and not head.layers[0].bias.any()
    normed = DINOHead(12, hidden_dim=16, bottleneck_dim=8, num_prototypes=20, num_layers=2, norm="batch")
    assert [type(layer) for layer in normed.layers] == [nn.Linear, nn.BatchNorm1d, nn.GELU, nn.Linear]
    with pytest.raises(ValueError, match="num_layers must be at least 1"):
        DINOHead(12, num_layers=0)
    with pytest.raises(ValueError, match="norm must be one of"):
        DINOHead(12, norm="layer")
