"""Weights in every layout that training codes write: built from one small network, read back to equal outputs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_fast.models.backbone import Backbone, BackboneConfig, build_backbone
from ssl_fast.models.weights import load_weights

RESNET = BackboneConfig("resnet18", cifar_stem=True, width=8, depth="1,1,1,1")
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "num_classes": 0}
State = dict[str, Tensor]


def resnet(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_backbone(RESNET).model
    for name, tensor in model.state_dict().items():  # so that every tensor shows in the output
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1 if name.endswith("var") else torch.randn_like(tensor) * 0.3)
    return model.eval()


def vit(seed: int, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", **{**VIT, "depth": 4, **options})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def noise(state: State) -> State:
    """Another network of the same names."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def children(state: State) -> State:
    """Names of nn.Sequential(*list(resnet.children())[:-1])."""
    order = ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    return {f"{order.index(name.split('.')[0])}.{name.split('.', 1)[1]}": tensor for name, tensor in state.items()}


HEAD = {"0.weight": torch.zeros(3, 3), "0.bias": torch.zeros(3), "2.weight": torch.zeros(2, 3)}
RESNETS: dict[str, Callable[[State], Any]] = {
    "torchvision, Barlow Twins, VICReg": lambda s: {**s, "fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)},
    "lightly": lambda s: {"state_dict": {**under("backbone.", children(s)), **under("projection_head.layers.", HEAD)}},
    "lightly with a teacher": lambda s: {
        "epoch": 3,
        "state_dict": {**under("backbone_momentum.", noise(s)), **under("backbone.", s)},
    },
    "lightly's module alone": lambda s: under("backbone.", children(s)),
    "solo-learn": lambda s: {
        "state_dict": {**under("momentum_backbone.", noise(s)), **under("backbone.", s), **under("projector.", HEAD)}
    },
    "solo-learn of old": lambda s: {"state_dict": under("encoder.", s)},
    "MoCo": lambda s: {
        "arch": "resnet18",
        "state_dict": {
            **under("module.encoder_k.", noise(s)),
            **under("module.encoder_q.", s),
            **under("module.encoder_q.fc.", HEAD),
            "module.queue": torch.zeros(8, 4),
        },
    },
    "MoCo v3": lambda s: {
        "state_dict": {**under("module.momentum_encoder.", noise(s)), **under("module.base_encoder.", s)}
    },
    "SimSiam": lambda s: {"state_dict": {**under("module.encoder.", s), **under("module.predictor.", HEAD)}},
    "SimCLR": lambda s: {"model": under("module.encoder.", s)},
    "BYOL": lambda s: {
        "online_network_state_dict": under("encoder.", s),
        "target_network_state_dict": under("encoder.", noise(s)),
    },
    "SwAV": lambda s: {**under("module.", s), **under("module.projection_head.", HEAD)},
    "DINO": lambda s: {
        "student": under("module.backbone.", noise(s)),
        "teacher": {**under("backbone.", s), **under("head.mlp.", HEAD)},
        "args": argparse.Namespace(arch="resnet18", lr=0.1),
        "epoch": 99,
    },
    "our checkpoint": lambda s: {
        "method": {**under("teacher.module.0.model.", noise(s)), **under("backbone.model.", s)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    },
}


@pytest.mark.parametrize("layout", RESNETS)
def test_resnets(tmp_path: Path, layout: str) -> None:
    source = resnet(1)
    torch.save(RESNETS[layout](source.state_dict()), tmp_path / "weights.pth")
    model = resnet(2)
    report = load_weights(model, tmp_path / "weights.pth")
    assert report.missing == ()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), source(x))


def chunked(state: State) -> State:
    """DINOv2 as trained: two chunks of two blocks."""
    new = {re.sub(r"^blocks\.(\d+)", lambda f: f"blocks.{int(f[1]) // 2}.{f[1]}", k): v for k, v in state.items()}
    return {**new, "mask_token": torch.zeros(1, 24)}


def torchvision_vit(state: State) -> State:
    rules = [
        (r"^patch_embed\.proj\.", "conv_proj."),
        (r"^cls_token", "class_token"),
        (r"^pos_embed", "encoder.pos_embedding"),
        (r"^norm\.", "encoder.ln."),
        (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.encoder_layer_\1.ln_\2."),
        (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_"),
        (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.encoder_layer_\1.self_attention.out_proj."),
        (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layers.encoder_layer_\1.mlp.0."),
        (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layers.encoder_layer_\1.mlp.3."),
    ]
    return rewritten(state, rules)


def clip_vit(state: State) -> State:
    rules = [
        (r"^patch_embed\.proj\.", "conv1."),
        (r"^cls_token", "class_embedding"),
        (r"^pos_embed", "positional_embedding"),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    ]
    visual = rewritten(state, rules)
    visual["class_embedding"] = visual["class_embedding"].flatten()
    visual["positional_embedding"] = visual["positional_embedding"][0]
    text = {"transformer.resblocks.0.ln_1.weight": torch.zeros(8), "positional_embedding": torch.zeros(7, 8)}
    return {**under("visual.", visual), "visual.proj": torch.zeros(24, 8), **text, "logit_scale": torch.ones(())}


def rewritten(state: State, rules: list[tuple[str, str]]) -> State:
    for pattern, new in rules:
        state = {re.sub(pattern, new, name): tensor for name, tensor in state.items()}
    return state


VITS: dict[str, tuple[dict[str, Any], Callable[[State], Any]]] = {
    "MAE": ({}, lambda s: {"model": s, "args": argparse.Namespace(model="mae"), "epoch": 1}),
    "DINO": (
        {},
        lambda s: {"student": under("module.backbone.", noise(s)), "teacher": under("module.backbone.", s)},
    ),
    "DINOv2 as trained": (
        {"init_values": 1.0},
        lambda s: {"teacher": {**under("backbone.", chunked(s)), **under("dino_head.", HEAD)}},
    ),
    "DINOv2 as published": ({"init_values": 1.0}, lambda s: {**s, "mask_token": torch.zeros(1, 24)}),
    "torchvision": ({}, lambda s: {**torchvision_vit(s), "heads.head.weight": torch.zeros(10, 24)}),
    "OpenCLIP": ({"pre_norm": True}, clip_vit),
    "OpenCLIP under DDP": ({"pre_norm": True}, lambda s: {"state_dict": under("module.", clip_vit(s))}),
    "OpenCLIP with a timm tower": ({}, lambda s: {"state_dict": under("module.visual.trunk.", s)}),
    "MoCo v3": ({}, lambda s: {"state_dict": under("module.base_encoder.", s)}),
    "solo-learn": ({}, lambda s: {"state_dict": under("backbone.", s)}),
}


@pytest.mark.parametrize("layout", VITS)
def test_vision_transformers(tmp_path: Path, layout: str) -> None:
    options, written = VITS[layout]
    source, model = vit(1, **options), vit(2, **options)
    torch.save(written(source.state_dict()), tmp_path / "weights.pth")
    assert load_weights(model, tmp_path / "weights.pth").missing == ()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), source(x))


def test_a_real_torchvision_vit() -> None:
    """The rules against the library itself, and not against our idea of it."""
    from torchvision.models import VisionTransformer

    from ssl_fast.models.layouts import candidates

    torch.manual_seed(0)
    source = VisionTransformer(32, 8, 4, 2, 24, 96).eval()
    nn.init.normal_(source.heads.head.weight)
    model = timm.create_model("vit_tiny_patch16_224", **{**VIT, "depth": 4, "num_classes": 1000}).eval()
    found = candidates(model, source.state_dict(), "")["torchvision's ViT", ""]
    found |= {name.replace("heads.head", "head"): v for name, v in source.state_dict().items() if "heads" in name}
    model.load_state_dict({name: found[name] for name in model.state_dict()})
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), source(x), rtol=1e-4, atol=1e-5)


def test_a_real_open_clip_tower(tmp_path: Path) -> None:
    transformer = pytest.importorskip("open_clip.transformer")
    torch.manual_seed(0)
    source = transformer.VisionTransformer(32, 8, 24, 4, 2, 4.0, output_dim=24).eval()
    with torch.no_grad():
        source.proj.copy_(torch.eye(24))
    torch.save({f"visual.{name}": tensor for name, tensor in source.state_dict().items()}, tmp_path / "a.pt")
    model = vit(2, pre_norm=True, norm_layer=nn.LayerNorm)  # whose epsilon is OpenCLIP's
    assert load_weights(model, tmp_path / "a.pt").missing == ()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), source(x), rtol=1e-4, atol=1e-5)


def test_another_network_of_the_file_by_name(tmp_path: Path) -> None:
    state = resnet(1).state_dict()
    torch.save(RESNETS["MoCo"](state), tmp_path / "a.pth.tar")
    model = resnet(2)
    report = load_weights(model, tmp_path / "a.pth.tar", owner="encoder_k")
    assert "module.encoder_k" in report.source
    assert not model.conv1.weight.any()
    with pytest.raises(ValueError, match="no network of this kind under 'teacher'"):
        load_weights(model, tmp_path / "a.pth.tar", owner="teacher")


def test_positions_and_patches_are_resampled(tmp_path: Path) -> None:
    torch.save(vit(1).state_dict(), tmp_path / "a.pth")
    larger = vit(2, img_size=64, patch_size=16)
    assert load_weights(larger, tmp_path / "a.pth").missing == ()
    eight = vit(2, img_size=64)
    assert load_weights(eight, tmp_path / "a.pth").missing == ()
    first = vit(1).pos_embed[:, 0]
    assert torch.equal(eight.pos_embed[:, 0], first) and eight.pos_embed.shape[1] == 65


def test_input_channels_are_summed(tmp_path: Path) -> None:
    torch.save(resnet(1).state_dict(), tmp_path / "a.pth")
    config = BackboneConfig(**{**vars(RESNET), "in_channels": 1, "weights": str(tmp_path / "a.pth")})
    grey = build_backbone(config)
    expected = resnet(1).conv1.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(grey.model.conv1.weight.detach(), expected.detach())


def test_a_smaller_share_when_told(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in resnet(1).state_dict().items() if not name.startswith("layer4")}
    torch.save(state, tmp_path / "a.pth")
    config = {**vars(RESNET), "weights": str(tmp_path / "a.pth")}
    with pytest.raises(ValueError, match=r"at least 90% needed \(backbone.min_matched"):
        build_backbone(BackboneConfig(**config))
    backbone = build_backbone(BackboneConfig(**{**config, "min_matched": 0.5}))
    assert torch.equal(backbone.model.conv1.weight, state["conv1.weight"])
    assert all(name.startswith("layer4") for name in backbone.weights_report.missing)


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    state = {name: t for name, t in resnet(1).state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "a.pth")
    assert len(state) < 0.9 * len(resnet(1).state_dict())
    load_weights(resnet(2), tmp_path / "a.pth")


def test_torchvisions_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(1)
    source = resnet18().eval()
    torch.save(source.state_dict(), cache / ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    backbone: Backbone = build_backbone(BackboneConfig(weights="torchvision:ResNet18_Weights.IMAGENET1K_V1")).eval()
    source.fc = nn.Identity()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(backbone(x), source(x))
    with pytest.raises(ValueError, match=r"torchvision has no weights 'ResNet18_Weights\.NONE'"):
        build_backbone(BackboneConfig(weights="torchvision:ResNet18_Weights.NONE"))
