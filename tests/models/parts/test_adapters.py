"""LoRA and IA3: they start as the identity, alone are trained, and fold into timm's names with the same outputs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_fast.models.backbone import BackboneConfig, build_backbone, load_backbone, save_backbone
from ssl_fast.models.parts import adapters
from ssl_fast.optim.config import parameter_groups
from tests.models.parts.conftest import SMALL, Build, images, without_gradient

KINDS: dict[str, dict[str, Any]] = {"lora": {"lora_rank": 4}, "ia3": {"ia3": True}}
pairs = pytest.mark.parametrize(("kind", "family"), [(kind, family) for kind in KINDS for family in SMALL])


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft", reason="peft is not installed")


def disturbed(backbone: Any) -> Any:
    """As if the adapters had been trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone


@pairs
def test_they_alone_are_trained(peft: Any, build: Build, kind: str, family: str) -> None:
    x = images(family)
    plain, backbone = build(family).eval(), build(family, **KINDS[kind]).eval()
    torch.testing.assert_close(backbone(x), plain(x), rtol=1e-5, atol=1e-5)
    disturbed(backbone)
    assert without_gradient(backbone, family) == []
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name or "ia3_" in name for name in trained)
    groups = parameter_groups(backbone.named_parameters(), 0.1)
    assert sum(len(group["params"]) for group in groups) == len(trained)
    assert all(p.grad is None for p in backbone.parameters() if not p.requires_grad)


@pairs
def test_saved_is_the_plain_network_with_the_same_outputs(
    peft: Any, build: Build, tmp_path: Path, kind: str, family: str
) -> None:
    backbone, names = disturbed(build(family, **KINDS[kind]).eval()), set(build(family).model.state_dict())
    x = images(family)
    with torch.no_grad():
        h = backbone(x)
        save_backbone(tmp_path, backbone, {})
        assert torch.equal(backbone(x), h), "saving changed the network that is being trained"
        build(family)  # sets the small architecture again
        loaded = load_backbone(tmp_path)[0]
        assert set(loaded.model.state_dict()) == names
        torch.testing.assert_close(loaded(x), h, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(build(family).eval()(x), h, rtol=1e-2, atol=1e-3)
    assert (loaded.config.lora_rank, loaded.config.ia3) == (0, False)
    assert all(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_put_on_a_saved_backbone(peft: Any, build: Build, tmp_path: Path, kind: str) -> None:
    plain = build("vit")
    save_backbone(tmp_path, plain, {})
    backbone = load_backbone(tmp_path, adapters=replace(plain.config, **KINDS[kind]))[0]
    x = images("vit")
    torch.testing.assert_close(backbone(x), plain.eval()(x))
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert 0 < trained < 0.2 * sum(p.numel() for p in backbone.parameters())


def test_fine_tuning_trains_head_and_adapters_alone(peft: Any, build: Build) -> None:
    from ssl_fast.methods.finetune.supervised import Supervised

    for frozen in (False, True):
        method = Supervised(Supervised.Config(num_classes=3, frozen=frozen), build("vit", lora_rank=2))
        trained = {name for name, p in method.named_parameters() if p.requires_grad}
        assert {"head.weight", "head.bias"} <= trained
        assert all(name.startswith("head.") or "lora_" in name for name in trained)
        assert any("lora_" in name for name in trained) is not frozen


def test_alpha_and_targets(peft: Any, build: Build) -> None:
    backbone = build("vit", lora_rank=2, lora_alpha=6.0, lora_targets=r"blocks\.[01]\.attn\.qkv")
    layers = [name for name, _ in backbone.named_modules() if name.endswith(".lora_A.default")]
    assert layers == [f"model.blocks.{i}.attn.qkv.lora_A.default" for i in (0, 1)]
    assert backbone.model.blocks[0].attn.qkv.scaling == {"default": 3.0}
    with pytest.raises(ValueError, match=r"lora_targets: no linear layer .* of vit_tiny_patch16_224 matches 'norm1'"):
        build("vit", lora_rank=2, lora_targets="norm1")


def test_merged_tokens_see_the_adapters(peft: Any, build: Build) -> None:
    backbone = disturbed(build("eva", lora_rank=2, merge_tokens="4"))
    assert without_gradient(backbone, "eva") == []


def test_other_families_are_refused() -> None:
    for settings in KINDS.values():
        with pytest.raises(ValueError, match="does not go into mobilenetv3_small_050; it goes into resnet18"):
            build_backbone(BackboneConfig("mobilenetv3_small_050", **settings))


def test_without_peft_the_extra_is_named(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"need peft: pip install ssl_fast\[recipes\]"):
        build("resnet", lora_rank=2)
    with pytest.raises(ImportError, match=r"need peft"):
        adapters.add_ia3(build("vit").model, "vit_tiny_patch16_224")
