"""A backbone as training leaves it, and what export needs to know of its images."""

import torch
from torch import nn

from ssl_fast.models.backbone import Backbone, BackboneConfig, build_backbone

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def preprocessing(size: int) -> dict:
    return {"size": size, "channels": 3, "interpolation": "bilinear", **IMAGENET}


def trained_like(config: BackboneConfig, size: int) -> Backbone:
    """A backbone whose norms are not at their initial 0 and 1, so that folding or skipping them shows."""
    torch.manual_seed(0)
    backbone = build_backbone(config)
    for module in backbone.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        for _ in range(3):
            backbone.train()(2 * torch.randn(4, config.in_channels, size, size) + 0.5)
    return backbone.eval()
