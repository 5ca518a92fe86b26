"""recipes/export.py: features and logits out as files that agree with PyTorch; refusals in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from ssl_fast.export.onnx import read_metadata
from ssl_fast.export.parity import onnx_runner
from ssl_fast.models.backbone import BackboneConfig, build_backbone, load_backbone, save_backbone
from ssl_fast.models.classifier import Classifier, save_head


def test_features_then_finished(run_recipe, folder):
    result = run_recipe("export", "run=r", "export.tensorrt=off", folder=folder)
    stage = folder / "runs" / "r" / "export"
    assert (result["output"], result["images"], result["tensorrt"]) == ("feature", "data", "off")
    assert {row["file"] for row in result["onnx"]} == {"model.onnx", "model_fp16.onnx"}
    assert max(row["max_error"] for row in result["parity"]["model.onnx"]) <= 1e-5
    assert min(row["cosine_min"] for row in result["parity"]["model_fp16.onnx"]) >= 0.9999
    backbone, _ = load_backbone(folder / "runs" / "r" / "pretrain")
    x = torch.randn(5, 1, 32, 32)
    torch.testing.assert_close(onnx_runner(stage / "model.onnx")(x), backbone(x).detach(), rtol=0, atol=1e-5)
    assert read_metadata(stage / "model.onnx")["input_size"] == [1, 32, 32]
    written = (stage / "model.onnx").stat().st_mtime_ns
    assert run_recipe("export", "run=r", "export.tensorrt=off", folder=folder) == result
    assert (stage / "model.onnx").stat().st_mtime_ns == written


def test_head_of_another_stage(run_recipe, folder):
    backbone, _ = load_backbone(folder / "runs" / "r" / "pretrain")
    torch.manual_seed(0)
    head = nn.Linear(backbone.num_features, 3)
    save_head(folder / "runs" / "r" / "probe", head, ["brick", "cat", "coins"])
    settings = ("run=r", "head=probe", "stage=export_head", "export.precision=[fp32]", "export.tensorrt=off")
    result = run_recipe("export", *settings, "images=noise", folder=folder)
    path = folder / "runs" / "r" / "export_head" / "model.onnx"
    assert result["output"] == "logits"
    assert read_metadata(path)["classes"] == ["brick", "cat", "coins"]
    x = torch.randn(2, 1, 32, 32)
    expected = Classifier(backbone, head).eval()(x).detach()
    torch.testing.assert_close(onnx_runner(path)(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("run=r", "export.precision=[int8]", "stage=a"),
            "export.precision must list some of fp32, fp16, got ['int8']",
        ),
        (("run=absent",), "run the stage pretrain first"),
        (("run=r", "images=paintings", "stage=b"), "images: expected data or noise, got 'paintings'"),
    ],
)
def test_refusals(run_recipe, folder: Path, settings, message):
    errors = run_recipe("export", *settings, folder=folder, code=2)
    assert message in errors
    assert "Traceback" not in errors


def test_for_torchvision(run_recipe, folder):
    settings = ("export.precision=[fp32]", "export.tensorrt=off", "images=noise", "torchvision=true")
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("resnet18")).eval()
    view = {"size": 32, "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    save_backbone(folder / "runs" / "t" / "pretrain", backbone, view)
    run_recipe("export", "run=t", *settings, folder=folder)
    model = resnet18().eval()
    state = torch.load(folder / "runs" / "t" / "export" / "torchvision.pth", weights_only=True)
    assert model.load_state_dict(state, strict=False).missing_keys == ["fc.weight", "fc.bias"]
    model.fc = nn.Identity()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), backbone(x))
    said = run_recipe("export", "run=r", "stage=export_narrow", *settings, folder=folder, code=2)
    assert "torchvision: its resnet18 differs in" in said
