"""The measure itself by hand, what happens beyond its limits, and more families of models at night."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ssl_fast.export import ExportConfig, export_model
from ssl_fast.export.parity import compare, failures, measure, random_images


def test_compare_by_hand():
    reference = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    row = compare(reference, torch.tensor([[3.0, 4.5], [0.0, 1.0]]))
    assert row["max_error"] == 1.0 and row["max_reference"] == 4.0
    assert row["cosine_min"] == 0.0
    assert row["cosine_mean"] == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)) / 2)
    with pytest.raises(ValueError, match=r"reference's shape \(2, 2\), got \(2, 3\)"):
        compare(reference, torch.zeros(2, 3))


def test_non_finite_output_fails():
    images = random_images((1, 2, 2), 3, seed=0)
    rows = measure(lambda x: x.flatten(1) / 0.0, images, images.flatten(1), batches=(1, 3))
    assert [row["max_error"] for row in rows] == [None, None]
    assert len(failures("model.onnx", rows, max_error=1e9, min_cosine=-1.0)) == 4


def test_whole_batches_and_every_image():
    images = random_images((1, 1, 1), 8, seed=0)
    seen: list[int] = []
    rows = measure(lambda x: seen.append(len(x)) or x.flatten(1), images, images.flatten(1))
    assert seen == [1] * 8 + [3] * 2 + [8]
    assert [(row["batch"], row["images"]) for row in rows] == [(1, 8), (3, 6), (8, 8)]
    with pytest.raises(ValueError, match="at least 8"):
        measure(lambda x: x, images[:7], images[:7])


def test_error_limit_scales_with_the_output():
    row = {"batch": 1, "max_error": 5e-5, "max_reference": 10.0, "cosine_min": 0.99995}
    assert failures("a", [row], max_error=1e-5) == []
    assert failures("a", [row | {"max_reference": 0.1}], max_error=1e-5) == ["a at batch 1: error 5e-05, limit 1e-05"]
    assert failures("a", [row], min_cosine=0.9999) == []
    assert failures("a", [row], min_cosine=0.99996) == ["a at batch 1: lowest cosine 0.99995, limit 0.99996"]


def test_random_images_are_a_function_of_the_seed():
    assert torch.equal(random_images((3, 4, 4), 2, seed=5), random_images((3, 4, 4), 2, seed=5))
    assert not torch.equal(random_images((3, 4, 4), 2, seed=5), random_images((3, 4, 4), 2, seed=6))


def test_missed_limit_is_reported_and_raised(small, small_preprocessing, tmp_path):
    config = ExportConfig(["fp16"], tensorrt="off", fp16_min_cosine=0.999999999)
    with pytest.raises(RuntimeError, match=r"too far from PyTorch: model_fp16.onnx at batch 1: lowest cosine 0\.99999"):
        export_model(config, small, small_preprocessing, tmp_path)
    assert set(json.loads((tmp_path / "parity.json").read_text())["parity"]) == {"model_fp16.onnx"}


NIGHTLY = {
    "resnet50": 224,
    "convnextv2_atto": 224,
    "swinv2_tiny_window8_256": 256,
    "vit_small_patch14_dinov2": 224,
    "eva02_tiny_patch14_224": 224,
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", list(NIGHTLY))
def test_more_families(name, tmp_path):
    from ssl_fast.models.backbone import BackboneConfig, build_backbone

    torch.manual_seed(0)
    size = NIGHTLY[name]
    config = BackboneConfig(name, image_size=size if name == "vit_small_patch14_dinov2" else 0)  # its own is 518
    preprocessing = {"size": size, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    report = export_model(ExportConfig(tensorrt="off"), build_backbone(config), preprocessing, tmp_path)
    assert max(row["max_error"] for row in report["parity"]["model.onnx"]) <= 1e-5
    assert min(row["cosine_min"] for row in report["parity"]["model_fp16.onnx"]) >= 0.9999
