"""Token merging: none of it is timm's forward, equal patches merge without a trace, and the matching by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_fast.export.onnx import export_onnx
from ssl_fast.export.parity import onnx_runner
from ssl_fast.models.parts.token_merging import match, merge, moved, schedule
from tests.models.parts.conftest import Build, images

FAMILIES = ("vit", "dinov2", "eva", "eva_large")


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_nothing_is_timms_forward(build: Build, family: str) -> None:
    x = images(family)
    torch.testing.assert_close(build(family, merge_tokens="0")(x), build(family)(x), rtol=1e-5, atol=1e-5)


def chequered(family: str, build: Build) -> Tensor:
    """Images whose patches come in equal pairs, side by side."""
    x = images(family)
    patch = 4
    columns = x.shape[-1] // patch
    pieces = list(x.split(patch, dim=-1))
    for column in range(0, columns - 1, 2):
        pieces[column + 1] = pieces[column]
    return torch.cat(pieces, dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_patches_merge_without_a_trace(build: Build, family: str) -> None:
    """A token that stands for two equal patches counts twice in attention and twice in the mean: nothing changes."""
    x = chequered(family, build)
    outputs = []
    for merge_tokens in ("", "4,4,4,4"):
        backbone = build(family, merge_tokens=merge_tokens).eval()
        backbone.model.rope = None  # rotations and positions would tell the patches apart
        with torch.no_grad():
            backbone.model.pos_embed.zero_()
            outputs.append(backbone.model.forward_features(x))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    assert outputs[0].shape == outputs[1].shape


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_that_differ_merge_with_a_trace(build: Build, family: str) -> None:
    x = images(family)
    plain, merged = (build(family, merge_tokens=m).eval()(x) for m in ("", "8"))
    assert not torch.allclose(plain, merged, rtol=1e-3, atol=1e-3)
    assert torch.nn.functional.cosine_similarity(plain, merged).min() > 0.3


@pytest.mark.parametrize(
    ("setting", "patches"), [("5", [59, 54, 49, 44]), ("0.25", [48, 36, 27, 21]), ("10,0,100,1", [54, 54, 27, 26])]
)
def test_blocks_see_fewer_patches(build: Build, setting: str, patches: list[int]) -> None:
    backbone, seen = build("vit", merge_tokens=setting), []
    for block in backbone.model.blocks:
        block.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1] - 1))
    tokens = backbone.model.forward_features(images("vit"))
    assert seen == patches
    assert tokens.shape[1] == 65, "each patch has a row"


def test_matching_by_hand() -> None:
    # A: patches 0, 2, 4; B: 1, 3. 0 is nearest to 3, 2 to 1 and 4 to 1; the best two are 2 -> 1 and 0 -> 3.
    angle = torch.tensor([0.0, 90.0, 92.0, 5.0, 120.0]).deg2rad()
    keys = torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    pairs = match(keys, 2)
    assert [rows.tolist() for rows in pairs] == [[[2]], [[1, 0]], [[0, 1]]]
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])[None, :, None]
    assert merge(x, pairs).flatten().tolist() == [10000.0, 110.0, 1001.0]
    assert moved(pairs, 5).tolist() == [[2, 1, 1, 2, 0]]


def test_several_patches_of_a_may_join_one_of_b() -> None:
    keys = torch.ones(1, 6, 2)
    pairs = match(keys, 3)
    x = torch.arange(6.0)[None, :, None]
    assert merge(x, pairs).flatten().tolist() == [0 + 2 + 4 + 1, 3, 5]


def test_sizes_add_up_to_the_patches() -> None:
    torch.manual_seed(0)
    keys, size = torch.randn(3, 33, 8), torch.ones(3, 33, 1)
    place = torch.arange(33).expand(3, -1)
    for r in (10, 5, 3):
        pairs = match(keys, r)
        place = moved(pairs, keys.shape[1]).gather(1, place)
        keys, size = merge(keys, pairs), merge(size, pairs)
    assert size.sum(1).flatten().tolist() == [33.0] * 3
    counts = torch.zeros(3, size.shape[1]).scatter_add(1, place, torch.ones(3, 33))
    assert torch.equal(counts, size[..., 0])


@pytest.mark.parametrize(("text", "depth", "values"), [("8", 3, (8, 8, 8)), ("0.1", 2, (0.1, 0.1)), ("4,0", 2, (4, 0))])
def test_schedule(text: str, depth: int, values: tuple[float, ...]) -> None:
    assert schedule(text, depth) == values


def test_class_tokens_are_never_merged(build: Build) -> None:
    backbone = build("dinov2", merge_tokens="0.5")
    seen: list[int] = []
    for block in backbone.model.blocks:
        block.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    backbone(images("dinov2"))
    assert seen == [5 + n for n in (25, 13, 7, 4)]


def test_no_merging_of_samples_with_each_other(build: Build) -> None:
    backbone = build("vit", merge_tokens="6").eval().double()
    x = images("vit", 4).double()
    together, alone = backbone(x), torch.cat([backbone(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


def test_bf16(build: Build) -> None:
    backbone = build("eva", merge_tokens="6").eval()
    x = images("eva")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = backbone(x)
    assert nn.functional.cosine_similarity(low.float(), backbone(x)).min() > 0.9


@pytest.mark.nightly
def test_exported_to_onnx(build: Build, tmp_path: Path) -> None:
    backbone, x = build("eva", merge_tokens="6,0,0,6").eval(), images("eva", 3)
    side = x.shape[-1]
    preprocessing = {"size": side, "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    export_onnx(backbone, tmp_path / "model.onnx", preprocessing)
    torch.testing.assert_close(onnx_runner(tmp_path / "model.onnx")(x), backbone(x).detach(), rtol=1e-4, atol=1e-4)
