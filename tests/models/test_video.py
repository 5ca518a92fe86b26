"""Backbones of clips: image networks averaged over frames, torchvision's 3-D ResNets; options, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import video

from ssl_fast.models.backbone import BackboneConfig, build_backbone, load_backbone, save_backbone
from ssl_fast.models.video import NAMES, channels_last, channels_last_

CLIPS = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
TINY = {"depth": "1,1,1,1"}


def test_an_image_network_is_averaged_over_the_frames() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("resnet18", cifar_stem=True, width=8, depth="1,1,1,1")).eval()
    expected = torch.stack([backbone(CLIPS[:, :, t]) for t in range(4)]).mean(dim=0)
    torch.testing.assert_close(backbone(CLIPS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone(channels_last(CLIPS)), expected, rtol=1e-4, atol=1e-5)
    assert backbone(CLIPS).shape == (2, backbone.num_features)


def test_a_transformer_works_too() -> None:
    config = BackboneConfig("vit_tiny_patch16_224", image_size=32)
    assert build_backbone(config)(CLIPS).shape == (2, 192)


@pytest.mark.parametrize("name", NAMES)
def test_torchvisions_networks(name: str) -> None:
    """The features are what torchvision's own network gives its classifier."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name)).eval()
    theirs = getattr(video, name)(weights=None).eval()
    fitted = theirs.load_state_dict(backbone.model.state_dict(), strict=False)
    assert fitted.missing_keys == ["fc.weight", "fc.bias"] and not fitted.unexpected_keys
    theirs.fc = nn.Identity()
    with torch.inference_mode():
        assert torch.equal(backbone(CLIPS), theirs(CLIPS))
    assert backbone.num_features == 512 == backbone(CLIPS[:1]).shape[1]


def test_options(tmp_path: Path) -> None:
    config = BackboneConfig("r3d_18", norm="group", in_channels=1, depth="1,2,1,1")
    backbone = build_backbone(config)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in backbone.modules())
    assert [len(getattr(backbone.model, f"layer{i}")) for i in (1, 2, 3, 4)] == [1, 2, 1, 1]
    one, both = backbone(CLIPS[:1, :1]), backbone(CLIPS[:, :1])
    torch.testing.assert_close(one[0], both[0], rtol=1e-4, atol=1e-5)  # samples are independent


@pytest.mark.parametrize("name", ["r3d_18", "r2plus1d_18"])
def test_saved_and_loaded(tmp_path: Path, name: str) -> None:
    backbone = build_backbone(BackboneConfig(name, **TINY)).eval()
    save_backbone(tmp_path, backbone, {"kind": "clip"})
    again, preprocessing = load_backbone(tmp_path)
    assert torch.equal(again(CLIPS), backbone(CLIPS)) and preprocessing == {"kind": "clip"}


def test_local_weights_of_torchvisions_shape(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = video.r3d_18(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "r3d_18.pth")
    backbone = build_backbone(BackboneConfig("r3d_18", weights=str(tmp_path / "r3d_18.pth")))
    report = backbone.weights_report
    assert report is not None and not report.missing and set(report.unexpected) == {"fc.bias", "fc.weight"}
    assert torch.equal(backbone.model.stem[0].weight, theirs.stem[0].weight)


def test_channels_last_changes_no_result() -> None:
    backbone = build_backbone(BackboneConfig("r3d_18", **TINY)).eval()
    expected = backbone(CLIPS)
    channels_last_(backbone)
    weight = backbone.model.stem[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) and not weight.is_contiguous()
    torch.testing.assert_close(backbone(channels_last(CLIPS)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cifar_stem": True}, "backbone.cifar_stem is for timm's image networks, and r3d_18 is a video network"),
        ({"pretrained": True}, "r3d_18 is a video network; give a local file with backbone.weights"),
        ({"depth": "3,1,1,1"}, "backbone.depth: expected four numbers of 1 or 2 for a video network, got '3,1,1,1'"),
        ({"norm": "layer"}, "backbone.norm must be batch or group, got 'layer'"),
        ({"name": "r3d_81"}, "backbone.name: timm has no model 'r3d_81'; nearest: r3d_18"),
    ],
)
def test_errors(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        build_backbone(BackboneConfig(**{"name": "r3d_18", **options}))


def test_a_video_network_refuses_images() -> None:
    backbone = build_backbone(BackboneConfig("r3d_18", **TINY))
    with pytest.raises(ValueError, match=r"r3d_18 takes clips \[N, C, T, H, W\], got shape \(2, 3, 32, 32\)"):
        backbone(CLIPS[:, :, 0])
