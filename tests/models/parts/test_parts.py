"""Every part in every family: it trains, it is copied and saved, it keeps timm's names, and elsewhere it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_fast.models.backbone import BackboneConfig, build_backbone, load_backbone, save_backbone
from ssl_fast.models.parts.families import FAMILIES, family_of
from ssl_fast.models.teacher import Teacher
from tests.models.parts.conftest import SMALL, Build, images, without_gradient

PREPROCESSING = {"size": 32}
CONVOLUTIONAL, PLAIN = ("resnet", "convnext"), ("vit", "dinov2", "eva", "eva_large")
PARTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "nothing": ({}, tuple(SMALL)),
    "drop_path": ({"drop_path": 0.2}, tuple(SMALL)),
    "cbam": ({"attention": "cbam"}, CONVOLUTIONAL),
    "mixstyle": ({"mixstyle": 0.5}, CONVOLUTIONAL),
    "merge_tokens": ({"merge_tokens": "5"}, PLAIN),
    "merge_share": ({"merge_tokens": "0.2"}, PLAIN),
    "learn_tokens": ({"learn_tokens": 4}, PLAIN),
}
PAIRS = [(part, family) for part, (_, families) in PARTS.items() for family in families]
REFUSED = [(part, family) for part, (_, families) in PARTS.items() for family in SMALL if family not in families]


@pytest.mark.parametrize("family", SMALL)
def test_families_are_recognised(build: Build, family: str) -> None:
    expected = {"dinov2": "vit", "eva_large": "eva"}.get(family, family)
    assert family_of(build(family).model) == expected
    assert set(FAMILIES) == {"resnet", "convnext", "swin", "swinv2", "vit", "eva"}


@pytest.mark.parametrize(("part", "family"), PAIRS)
def test_it_trains_is_copied_and_saved(build: Build, tmp_path: Path, part: str, family: str) -> None:
    settings = PARTS[part][0]
    backbone, plain = build(family, **settings), build(family)
    names = set(plain.model.state_dict())
    assert names <= set(backbone.model.state_dict())
    if part not in ("cbam", "learn_tokens"):
        assert names == set(backbone.model.state_dict())
    assert without_gradient(backbone, family) == []
    teacher, x = Teacher(backbone).eval(), images(family)
    backbone.eval()
    with torch.no_grad():
        h = backbone(x)
        assert h.shape == (2, backbone.num_features) and h.isfinite().all()
        assert torch.equal(teacher(x), h)
        teacher.module.model.load_state_dict({k: v * 0 for k, v in teacher.module.model.state_dict().items()})
        assert torch.equal(backbone(x), h), "the copy shares something with the network"
    save_backbone(tmp_path, backbone, PREPROCESSING)
    loaded = load_backbone(tmp_path)[0]
    with torch.no_grad():
        assert torch.equal(loaded(x), h)


@pytest.mark.parametrize(("part", "family"), REFUSED)
def test_elsewhere_it_is_refused_with_models_that_work(build: Build, part: str, family: str) -> None:
    with pytest.raises(
        ValueError, match=rf"backbone\.\w+(=cbam)? does not go into {SMALL[family][0]['name']}; it goes"
    ):
        build(family, **PARTS[part][0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "senet"}, "attention must be cbam"),
        ({"mixstyle": 1.5}, "mixstyle must be a probability"),
        ({"learn_tokens": -1}, "learn_tokens must be 0"),
        ({"merge_tokens": "4", "learn_tokens": 4}, "both make tokens fewer"),
        ({"lora_rank": 4, "ia3": True}, "two kinds of adapters"),
        ({"min_matched": 0.0}, "min_matched must be in"),
        ({"name": "mobilenetv3_small_050", "merge_tokens": "4"}, "goes into vit_small_patch16_224"),
        ({"name": "seresnet18", "attention": "cbam"}, "no free place"),
        ({"name": "vit_tiny_patch16_224", "merge_tokens": "4,4"}, "a list of 12 of them"),
        ({"name": "vit_tiny_patch16_224", "merge_tokens": "0.7"}, "a share up to 0.5"),
        ({"name": "vit_tiny_patch16_224", "merge_tokens": "few"}, "expected a number of patches"),
        ({"name": "test_vit_relpos", "merge_tokens": "4"}, "does not go into test_vit_relpos"),
        ({"name": "vit_small_patch16_18x2_224", "learn_tokens": 4}, "are of another kind"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_backbone(BackboneConfig(**settings))
    assert "\n" not in str(caught.value)


def test_weights_of_a_plain_network_and_of_one_with_the_part(build: Build, tmp_path: Path) -> None:
    save_backbone(tmp_path / "plain", build("resnet", seed=1), PREPROCESSING)
    save_backbone(tmp_path / "cbam", build("resnet", seed=1, attention="cbam"), PREPROCESSING)
    for name, missing in (("plain", True), ("cbam", False)):
        backbone = build("resnet", seed=2, attention="cbam", weights=str(tmp_path / name))
        assert any(".se." in name for name in backbone.weights_report.missing) is missing
        assert not any(".se." not in name for name in backbone.weights_report.missing)


@pytest.mark.parametrize("family", ["dinov2", "eva"])
def test_compiled_without_graph_breaks(build: Build, family: str) -> None:
    backbone, x = build(family, merge_tokens="5").eval(), images(family)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(backbone, fullgraph=True, backend="eager")(x), backbone(x))
