"""A ResNet for torchvision: loaded there, it gives the same features and logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from ssl_fast.models.backbone import Backbone, BackboneConfig, build_backbone
from ssl_fast.models.torchvision_weights import save_torchvision, to_torchvision


def trained(config: BackboneConfig) -> Backbone:
    torch.manual_seed(0)
    backbone = build_backbone(config)
    for name, parameter in backbone.named_parameters():
        if name.endswith("weight") and parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.2, 1.0)
    backbone.train()(torch.randn(4, 3, 64, 64))  # moves the batch statistics
    return backbone.eval()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_and_logits_are_equal(tmp_path: Path, name: str) -> None:
    backbone, x = trained(BackboneConfig(name)), torch.randn(2, 3, 64, 64)
    head = nn.Linear(backbone.num_features, 1000)
    assert save_torchvision(tmp_path, backbone, head) == "torchvision.pth"
    model = get_model(name).eval()
    model.load_state_dict(torch.load(tmp_path / "torchvision.pth", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(model(x), head(backbone(x)), rtol=1e-5, atol=1e-5)
        model.fc = nn.Identity()
        model.load_state_dict(to_torchvision(backbone))
        torch.testing.assert_close(model(x), backbone(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig("convnextv2_atto"), "it has no ResNet 'convnextv2_atto'.*resnet18"),
        (BackboneConfig(cifar_stem=True), r"its resnet18 differs in 1 tensors, first 'conv1.weight'"),
        (BackboneConfig(attention="cbam"), "its resnet18 differs"),
    ],
)
def test_what_torchvision_has_not_is_refused(config: BackboneConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_torchvision(build_backbone(config))
