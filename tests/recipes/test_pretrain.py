"""The pretrain recipe as a user runs it: its results, its presets, and what it says to bad input."""

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_fast import config as command_line
from ssl_fast.config import classes_in
from ssl_fast.train.inputs import data_options
from tests.forked import run_script

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "pretrain.py"
PRESETS = RECIPE.parent / "presets" / "pretrain"
TINY = ["data.num_train=320", "data.num_val=160", "data.num_test=160", "data.workers=0", "backbone.cifar_stem=true"]
TINY += ["backbone.width=8", 'backbone.depth="1,1,1,1"', "train.batch_size=64", "train.epochs=2"]


def start(*settings: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run_script(RECIPE, *settings, folder=folder)


def test_from_images_to_a_backbone_and_its_scores(tmp_path: Path, run_recipe: Callable[..., Any]) -> None:
    result = run_recipe("pretrain", *TINY, "run=a", folder=tmp_path)
    for key in ("knn_top1", "knn_top1_random_init", "knn_top1_raw_pixels"):
        assert 0 < result[key] <= 1
    assert result["steps"] == 10 and result["skipped_steps"] == 0
    assert result["images_per_second"] > 0 and result["train_seconds"] > 0
    stage = tmp_path / "runs" / "a" / "pretrain"
    assert json.loads((stage / "backbone.json").read_text())["preprocessing"]["size"] == 32  # the patches' own
    for product in ("backbone.safetensors", "backbone.json", "neighbours.png", "metrics.jsonl", "config.yaml"):
        assert (stage / product).stat().st_size > 0
    again = start(*TINY, "run=a", folder=tmp_path)
    assert "finished already" in again.stderr
    refused = start(*TINY, "run=a", "train.seed=1", folder=tmp_path)
    assert refused.returncode == 2 and "train.seed: 0 -> 1" in refused.stderr


MISTAKES = {
    "+preset=simclr_cifar1": ["preset: no 'simclr_cifar1'; did you mean 'simclr_cifar10' or"],
    "+preset=simclr_cifar10_smal": ["did you mean 'simclr_cifar10_small' or"],
    "method=simcrl": ["method: no 'simcrl'; did you mean 'simclr'", "moco"],
    "train.epohcs=3": ["no setting 'train.epohcs'; did you mean 'train.epochs'"],
    "+train.epohcs=3": ["no setting 'train.epohcs'; did you mean 'train.epochs'"],
    "train.epochs=many": ["train.epochs: Value 'many'"],
    "data=arrays data.path=missing.npz": ["data.path: no file missing.npz"],
    "data=image_folder data.root=empty": ["no images found under empty", ".jpg"],
    "data=tar_shards data.root=empty": ["data.root: no .tar files under empty"],
    # local views follow the size of the data set's images, 3/7 of 32 px
    "method=swav data.num_train=320 backbone.name=vit_tiny_patch16_224 backbone.patch_size=4 backbone.image_size=32": [
        "the views have 13 and 32 px, and the backbone takes 32 px alone: set backbone.dynamic_size=true"
    ],
    "train.batch_size=1": ["train.batch_size: expected at least 2"],
    # all said before the training, not after it
    "data.num_train=320 knn.k=400": ["knn.k: expected 1 to 320 (the training samples), got 400"],
    "data.num_train=320 knn.temperature=0": ["knn.temperature: expected a positive number, got 0"],
    "data.num_train=320 monitor.k=400": ["monitor.k: expected at most 320"],
    "data.num_train=320 train.seed=-1": ["train.seed: expected a number from 0 to 2**63 - 1"],
}


@pytest.mark.parametrize("settings", MISTAKES)
def test_a_mistake_ends_in_one_sentence(tmp_path: Path, settings: str) -> None:
    (tmp_path / "empty").mkdir()
    done = start("train.device=cpu", *settings.split(), folder=tmp_path)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("runs/")]  # the stage's own line
    assert len(said) == 1 and said[0].startswith("error: ") and not done.stdout
    assert all(part in said[0] for part in MISTAKES[settings])


def test_help_shows_choices_and_the_settings_that_follow_from_them(tmp_path: Path) -> None:
    done = start("method=moco", "--help", folder=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("Stage 1, pretrain: ")
    assert "\nmethod: barlow_twins, byol, " in done.stdout and "\n+preset: barlow_twins_cifar10, " in done.stdout
    assert "\nmethod:\n  name: moco\n" in done.stdout and "\n  queue_size: " in done.stdout
    wrong = start("method=simcrl", "--help", folder=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: method: no 'simcrl'")


def test_help_ends_quietly_when_its_reader_has_left() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, str(RECIPE), "--help"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE and done.stderr == ""


def test_under_torchrun_the_sentence_is_said_once(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(RECIPE), "method=simcrl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert done.stderr.count("error: method: no 'simcrl'") == 1


@pytest.fixture(scope="module")
def all_presets() -> list[str]:
    """Their names; Hydra knows them, and the recipe's settings."""
    names = sorted(file.stem for file in PRESETS.glob("*.yaml"))
    recipe = runpy.run_path(str(RECIPE), run_name="a test")
    methods = {name: cls.Config for name, cls in classes_in(recipe["METHODS"]).items()}  # type: ignore[attr-defined]
    words = [f"+preset={name}" for name in names]
    command_line._register(recipe["PretrainConfig"], {"method": methods, "data": data_options()}, PRESETS, words)
    return names


@pytest.mark.parametrize("preset", sorted(file.stem for file in PRESETS.glob("*.yaml")))
def test_every_preset_composes(preset: str, all_presets: list[str]) -> None:
    import hydra
    from omegaconf import OmegaConf

    assert preset in all_presets
    header = (PRESETS / f"{preset}.yaml").read_text()
    said = re.search(r"^# .*recipes/pretrain\.py (.*?)(?:   .*)?$", header, re.M)  # what it is for, perhaps a remark
    command = shlex.split(said[1]) if said else []
    assert command[0] == f"+preset={preset}"
    with hydra.initialize(config_path=None, version_base="1.3"):
        composed = OmegaConf.to_object(hydra.compose("PretrainConfig", command))
    assert preset.startswith(("photo_patches", "video", composed.method.name))
    assert composed.train.epochs >= 1
    large = "imagenet" in preset or preset.endswith("_paper")
    assert large or composed.method.view.blur == 0  # small pictures are not blurred


def test_images_of_five_channels(tmp_path: Path, run_recipe: Callable[..., Any]) -> None:
    random = np.random.default_rng(0)
    parts = {"train": 32, "test": 8}
    members = {f"x_{part}": random.integers(0, 256, (num, 16, 16, 5), np.uint8) for part, num in parts.items()}
    labels = {f"y_{part}": np.arange(num) % 2 for part, num in parts.items()}
    np.savez(tmp_path / "five.npz", **members, **labels)
    data = ("data=arrays", "data.path=five.npz", "data.workers=0", "train.batch_size=16", "train.epochs=1", "knn.k=3")
    small = ("backbone.cifar_stem=true", "backbone.width=8", 'backbone.depth="1,1,1,1"', "monitor.k=3")
    grey = ("method.view.saturation=0", "method.view.hue=0", "method.view.grayscale=0")  # 5 channels are no colours
    result = run_recipe("pretrain", *data, *small, *grey, "run=five", folder=tmp_path)
    assert result["knn_top1"] is not None
    assert json.loads((tmp_path / "runs/five/pretrain/backbone.json").read_text())["config"]["in_channels"] == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is one")
def test_a_gpu_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    done = start(*TINY, "train.device=cuda", folder=tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: device='cuda' was asked for")


def test_a_run_that_starts_from_another_ones_method(tmp_path: Path, run_recipe: Callable[..., Any]) -> None:
    short = [*TINY, "method=moco", "method.queue_size=64", "method.hidden_dim=16", "method.dim=8", "train.epochs=1"]
    run_recipe("pretrain", *short, "run=a", folder=tmp_path)
    done = start(*short, "run=b", "init=a", "train.seed=1", folder=tmp_path)
    assert done.returncode == 0 and "matched, 0 missing, 0 unexpected" in done.stderr
    stage = json.loads((tmp_path / "runs" / "b" / "pretrain" / "stage.json").read_text())
    assert stage["inputs"]["init"]["path"] == "runs/a/pretrain/checkpoints"
    assert "finished already" in start(*short, "run=b", "init=a", "train.seed=1", folder=tmp_path).stderr
    refused = run_recipe("pretrain", *short, "run=c", "init=nowhere", folder=tmp_path, code=2)
    assert refused.startswith("error: init: no checkpoint in runs/nowhere/pretrain/checkpoints")
