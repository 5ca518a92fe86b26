"""One small network of each family, and what every part must do in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ssl_fast.models import backbone as module
from ssl_fast.models.backbone import Backbone, BackboneConfig, build_backbone

# family -> settings, timm arguments that make it small, side of its images
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "resnet": ({"name": "resnet18", "cifar_stem": True, "width": 16, "depth": "1,1,1,1"}, {}, 32),
    "convnext": ({"name": "convnextv2_atto"}, {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)}, 32),
    "swin": (
        {"name": "swin_tiny_patch4_window7_224", "image_size": 32},
        {"depths": (2, 1), "embed_dim": 16, "num_heads": (1, 2), "window_size": 4},
        32,
    ),
    "swinv2": (
        {"name": "swinv2_tiny_window8_256", "image_size": 32},
        {"depths": (2, 1), "embed_dim": 16, "num_heads": (1, 2), "window_size": 4},
        32,
    ),
    "vit": (
        {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 4},
        {"depth": 4, "embed_dim": 32, "num_heads": 2},
        32,
    ),
    "dinov2": (
        {"name": "vit_small_patch14_reg4_dinov2", "image_size": 28, "patch_size": 4},
        {"depth": 4, "embed_dim": 32, "num_heads": 2},
        28,
    ),
    "eva": (
        {"name": "eva02_tiny_patch14_224", "image_size": 28, "patch_size": 4},
        {"depth": 4, "embed_dim": 32, "num_heads": 2},
        28,
    ),
    "eva_large": (
        {"name": "eva02_base_patch14_224", "image_size": 28, "patch_size": 4},
        {"depth": 4, "embed_dim": 32, "num_heads": 2},
        28,
    ),
}

Build = Callable[..., Backbone]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Build:
    """build(family, seed=0, **settings): the small network; every weight is random, so that all of it counts."""
    smaller: dict[str, Any] = {}
    timm = module._timm()

    def create(name: str, **arguments: Any) -> nn.Module:
        return timm.create_model(name, **{**arguments, **smaller})

    stub = type("timm", (), {"create_model": staticmethod(create), "__getattr__": lambda _, key: getattr(timm, key)})()
    monkeypatch.setattr(module, "_timm", lambda: stub)

    def build(family: str, seed: int = 0, **settings: Any) -> Backbone:
        config, arguments, _ = SMALL[family]
        smaller.clear()
        smaller.update(arguments)
        torch.manual_seed(seed)
        backbone = build_backbone(BackboneConfig(**{**config, **settings}))
        torch.manual_seed(seed)  # parts have drawn too
        for name, parameter in backbone.model.named_parameters():
            if parameter.ndim == 1 and not parameter.any() and ".se." not in name:
                nn.init.normal_(parameter, std=0.2)  # norms that start at zero would hide the branch behind them
            if "gamma" in name:
                nn.init.ones_(parameter)
        return backbone

    return build


def images(family: str, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SMALL[family][2], SMALL[family][2])


def without_gradient(backbone: Backbone, family: str) -> list[str]:
    """Trained parameters that a step leaves without gradient."""
    backbone.train()
    backbone(images(family, 4)).square().sum().backward()
    return [n for n, p in backbone.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
