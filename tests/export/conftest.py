"""Two models with statistics as training leaves them, exported once for all tests, by the recipe as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_fast.models.backbone import Backbone, BackboneConfig, build_backbone, save_backbone

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "export.py"

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


@dataclass
class Exported:
    backbone: Backbone
    folder: Path
    report: dict


def _export(name: str, folder: Path) -> Exported:
    backbone = trained_like(BackboneConfig(name), 224)
    save_backbone(folder / "runs" / "r" / "pretrain", backbone, preprocessing(224))
    done = subprocess.run(
        [sys.executable, str(RECIPE), "run=r", "images=noise"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "runs" / "r" / "export" / "parity.json").read_text())
    result = json.loads(done.stdout.splitlines()[-1])
    assert {key: result[key] for key in report} == report
    return Exported(backbone, folder / "runs" / "r" / "export", report)


@pytest.fixture(scope="session", params=["resnet18", "vit_tiny_patch16_224"])
def exported(request, tmp_path_factory) -> Exported:
    return _export(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def small_preprocessing() -> dict:
    return preprocessing(32)


@pytest.fixture(scope="session")
def small() -> Backbone:
    """1/40 of a ResNet-18 for 32 px: exports in about a second."""
    return trained_like(BackboneConfig(cifar_stem=True, width=8, depth="1,1,1,1"), 32)
