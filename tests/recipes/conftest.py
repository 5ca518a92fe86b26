"""What the tests of the recipes share: a finished pretrain stage, and a way to run a recipe as a user does."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ssl_fast.data.datasets import open_dataset
from ssl_fast.data.datasets.photo_patches import PhotoPatches
from ssl_fast.data.views import View
from ssl_fast.models.backbone import BackboneConfig, build_backbone, save_backbone
from tests.forked import run_script

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(scope="session")
def patches() -> PhotoPatches.Config:
    """Real image patches, few of them."""
    return PhotoPatches.Config(num_train=320, num_val=160, num_test=160)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, patches: PhotoPatches.Config) -> Path:
    """A folder to work in, with runs/r/pretrain: an untrained small ResNet, and the patches as its data."""
    folder = tmp_path_factory.mktemp("work")
    stage = folder / "runs" / "r" / "pretrain"
    torch.manual_seed(0)
    config = BackboneConfig(cifar_stem=True, width=8, depth="1,1,1,1", in_channels=1)
    train = open_dataset(patches, "train")
    view = View("eval", size=32, crop="center", flip=0.0, mean=train.mean, std=train.std)
    save_backbone(stage, build_backbone(config), asdict(view))
    (stage / "config.yaml").write_text(yaml.safe_dump({"data": {**asdict(patches), "workers": 0}}))
    return folder


@pytest.fixture(scope="session")
def run_recipe() -> Callable[..., Any]:
    """run_recipe(name, *settings, folder=, code=0): its result, or the last line of stderr where it fails."""
    return _run_recipe


def _run_recipe(name: str, *settings: str, folder: Path, code: int = 0) -> Any:
    done = run_script(RECIPES / f"{name}.py", *settings, folder=folder)
    assert done.returncode == code, done.stderr
    return done.stderr.splitlines()[-1] if code else json.loads(done.stdout.splitlines()[-1])
