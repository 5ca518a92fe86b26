"""Backbones: shapes, options, refusals, and files that rebuild the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_fast.models.backbone import Backbone, BackboneConfig, build_backbone, load_backbone, save_backbone
from ssl_fast.models.vit import check_sizes

SMALL = BackboneConfig(cifar_stem=True, width=16, depth="1,1,1,1")
PREPROCESSING = {"size": 32, "channels": 3, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}


def build(seed: int = 0, **options: object) -> Backbone:
    torch.manual_seed(seed)
    return build_backbone(replace(SMALL, **options)).eval()


def blocks(backbone: Backbone) -> list[nn.Module]:
    return [block for stage in range(1, 5) for block in getattr(backbone.model, f"layer{stage}")]


@pytest.mark.parametrize(
    ("config", "side"),
    [
        (BackboneConfig(), 64),
        (BackboneConfig(cifar_stem=True, in_channels=1), 32),
        (BackboneConfig(width=24, depth="1,2,1,1", norm="group"), 64),
        (BackboneConfig("resnet50", width=8, depth="1,1,1,1", drop_path=0.1), 64),
        (BackboneConfig("vit_tiny_patch16_224", image_size=32, patch_size=8, drop_path=0.1), 32),
        (
            BackboneConfig("mobilenetv3_small_050", norm="group"),
            64,
        ),  # hidden layer after pooling, fused norm and activation
        (BackboneConfig("convnextv2_atto", in_channels=1), 64),
    ],
    ids=lambda value: value.name if isinstance(value, BackboneConfig) else None,
)
def test_features_have_the_announced_shape(config, side):
    backbone = build_backbone(config).eval()
    with torch.no_grad():
        h = backbone(torch.randn(2, config.in_channels, side, side))
    assert h.shape == (2, backbone.num_features)
    assert h.isfinite().all()


def test_plain_resnet_is_timms():
    import timm

    torch.manual_seed(0)
    own = build_backbone(BackboneConfig("resnet18")).model.state_dict()
    torch.manual_seed(0)
    timms = timm.create_model("resnet18", num_classes=0).state_dict()
    assert own.keys() == timms.keys()
    assert all(torch.equal(own[name], timms[name]) for name in own)


def test_width_and_depth():
    backbone = build(width=32, depth="1,2,1,3")
    assert [len(getattr(backbone.model, f"layer{i}")) for i in range(1, 5)] == [1, 2, 1, 3]
    assert [getattr(backbone.model, f"layer{i}")[-1].conv2.out_channels for i in range(1, 5)] == [32, 64, 128, 256]
    assert backbone.model.conv1.out_channels == 32
    assert backbone.num_features == 256


def test_cifar_stem_keeps_the_resolution():
    backbone = build()
    assert backbone.model.conv1.kernel_size == (3, 3)
    with torch.no_grad():
        stem = backbone.model.maxpool(backbone.model.conv1(torch.randn(1, 3, 32, 32)))
    assert stem.shape[-2:] == (32, 32)
    plain = build(cifar_stem=False)
    assert (plain.model.conv1.kernel_size, plain.model.conv1.stride) == ((7, 7), (2, 2))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_last_norm_of_a_block_starts_at_zero(norm):
    for block in blocks(build(norm=norm)):
        assert not block.bn2.weight.any()
        assert block.bn1.weight.all()


def test_group_norm_makes_rows_independent():
    x = torch.randn(6, 3, 32, 32)
    for norm, independent in (("group", True), ("batch", False)):
        backbone = build(norm=norm).double().train()
        alone = torch.cat([backbone(rows.double()) for rows in x.split(3)])
        together = backbone(x.double())
        assert torch.allclose(alone, together, rtol=0, atol=1e-12) is independent
    assert not any(isinstance(module, nn.BatchNorm2d) for module in build(norm="group").modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet81"}, "timm has no model 'resnet81'; nearest: .*resnet18"),
        ({"name": "hf-hub:someone/something"}, "timm has no model"),
        ({"name": "resnet18.nowhere"}, "no published weights.*resnet18.a1_in1k"),
        ({"name": "vit_tiny_patch16_224", "cifar_stem": True}, "cifar_stem is for timm's ResNets"),
        ({"name": "convnextv2_atto", "width": 16}, "width is for timm's ResNets"),
        ({"name": "resnet18d", "cifar_stem": True}, "whose stem is one convolution"),
        ({"name": "vit_tiny_patch16_224", "width": 96}, "width must be a multiple of backbone.heads"),
        ({"name": "vit_tiny_patch16_224", "heads": 4}, "heads must be a positive number beside backbone.width"),
        (
            {"name": "vit_tiny_patch16_224", "depth": "1,1,1,1"},
            "depth of a vision transformer must be a positive number",
        ),
        ({"heads": 3, "width": 64}, "heads is for vision transformers, and resnet18 is none"),
        ({"dynamic_size": True}, "dynamic_size is not an option of resnet18"),
        ({"image_size": 32}, "image_size is not an option of resnet18"),
        ({"patch_size": 4}, "patch_size is not an option of resnet18"),
        ({"name": "vgg11", "drop_path": 0.1}, "drop_path is not an option of vgg11"),
        ({"name": "vit_tiny_patch16_224", "norm": "group"}, "has none"),
        ({"norm": "layer"}, "norm must be batch or group, got 'layer'"),
        ({"depth": "1,1,1"}, "depth must be four positive"),
        ({"depth": "1,1,x,1"}, "depth must be four positive"),
        ({"width": 7}, "width must be an even"),
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\)"),
        ({"pretrained": True, "width": 32}, "do not fit backbone.width"),
        ({"name": "vit_tiny_patch16_224", "pretrained": True, "depth": "6"}, "do not fit backbone.depth"),
        ({"pretrained": True, "weights": "a.pth"}, "give one"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_backbone(BackboneConfig(**options))
    assert "\n" not in str(caught.value)


def test_published_weights_out_of_reach(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"neither in the cache nor within reach.*backbone\.weights") as caught:
        build_backbone(BackboneConfig(pretrained=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"norm": "group", "in_channels": 1}])
def test_saved_backbone_comes_back(tmp_path, options):
    backbone = build(**options).to(memory_format=torch.channels_last)
    for block in blocks(backbone):
        nn.init.uniform_(block.bn2.weight)
    backbone.train()(torch.randn(4, backbone.config.in_channels, 32, 32))  # moves the batch statistics
    save_backbone(tmp_path / "new", backbone, PREPROCESSING)
    for path in (tmp_path / "new", tmp_path / "new" / "backbone.json"):
        loaded, preprocessing = load_backbone(path)
        assert preprocessing == PREPROCESSING
        assert not loaded.training
        x = torch.randn(2, backbone.config.in_channels, 32, 32)
        assert torch.equal(loaded.to(memory_format=torch.channels_last)(x), backbone.eval()(x))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["backbone.json", "backbone.safetensors"]


def test_saved_names_are_timms(tmp_path):
    from safetensors.torch import load_file

    save_backbone(tmp_path, build(), PREPROCESSING)
    assert "layer4.0.bn2.running_var" in load_file(tmp_path / "backbone.safetensors")


def test_saved_description_forgets_where_weights_came_from(tmp_path):
    from safetensors.torch import save_file

    save_file(build().model.state_dict(), tmp_path / "first.safetensors")
    backbone = build(weights=str(tmp_path / "first.safetensors"))
    save_backbone(tmp_path, backbone, PREPROCESSING)
    (tmp_path / "first.safetensors").unlink()
    assert load_backbone(tmp_path)[0].config.weights == ""


@pytest.mark.parametrize("position", [100, -1])
def test_one_flipped_bit_is_refused(tmp_path, position):
    save_backbone(tmp_path, build(), PREPROCESSING)
    weights = tmp_path / "backbone.safetensors"
    content = bytearray(weights.read_bytes())
    content[position] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"backbone\.safetensors is damaged"):
        load_backbone(tmp_path)


def test_missing_or_foreign_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no backbone.json"):
        load_backbone(tmp_path)
    save_backbone(tmp_path, build(), PREPROCESSING)
    description = tmp_path / "backbone.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ValueError, match="not a backbone description of format 1"):
        load_backbone(tmp_path)
    description.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_backbone(tmp_path)
    description.write_text(json.dumps(content))
    (tmp_path / "backbone.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no backbone.safetensors beside"):
        load_backbone(tmp_path)


def test_interrupted_save_leaves_the_old_pair(tmp_path, monkeypatch):
    first = build(seed=1)
    save_backbone(tmp_path, first, PREPROCESSING)

    def full(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssl_fast.models.backbone._sha256", full)
    with pytest.raises(OSError, match="No space"):
        save_backbone(tmp_path, build(seed=2), PREPROCESSING)
    monkeypatch.undo()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_backbone(tmp_path)[0](x), first(x))


VIT = {"name": "vit_tiny_patch16_224", "patch_size": 4, "image_size": 24, "width": 96, "heads": 3, "depth": "2"}


def test_width_depth_and_heads_of_vision_transformers():
    backbone = build_backbone(BackboneConfig(**VIT))
    assert len(backbone.model.blocks) == 2 and backbone.num_features == 96
    assert {block.attn.num_heads for block in backbone.model.blocks} == {3}
    assert build_backbone(BackboneConfig(**VIT | {"width": 128, "heads": 0})).model.blocks[0].attn.num_heads == 2
    assert len(build_backbone(BackboneConfig("deit_tiny_patch16_224", depth="1")).model.blocks) == 1


def test_views_of_several_sizes_compile_once_more_and_then_no_more():
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(**VIT, dynamic_size=True)).eval()
    views = [torch.randn(2, 3, size, size) for size in (24, 12, 24, 12, 16)]
    expected = [backbone(view) for view in views]
    torch._dynamo.reset()
    compiled = torch.compile(backbone, backend="eager")
    for view, h in zip(views[:2], expected, strict=False):
        assert torch.allclose(compiled(view), h, atol=1e-6)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for view, h in zip(views[2:4], expected[2:], strict=False):
            assert torch.allclose(compiled(view), h, atol=1e-6)
    same = build_backbone(BackboneConfig(**VIT))
    same.load_state_dict(backbone.state_dict())
    assert torch.equal(same.eval()(views[0]), expected[0])  # at the size it was built for nothing is resampled


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        (
            {},
            {24, 12},
            "the views have 12 and 24 px, and the backbone takes 24 px alone: set backbone.dynamic_size=true",
        ),
        ({}, {32}, "image_size: expected 32, the size of the views in px, got 24"),
        ({"dynamic_size": True}, {24, 10}, "views of 10 px cannot be cut into patches of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, sizes, message):
    with pytest.raises(ValueError, match=message):
        check_sizes(build_backbone(BackboneConfig(**VIT, **options)).model, sizes)


def test_sizes_that_fit():
    check_sizes(build_backbone(BackboneConfig(**VIT)).model, {24})
    check_sizes(build_backbone(BackboneConfig(**VIT, dynamic_size=True)).model, {24, 12, 32})
    check_sizes(build().model, {17, 224})
