"""From videos to a backbone of clips, its scores, features and fine-tuning, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIDE = 24
CLASSES = ("left", "right")
LOADING = ("data.workers=0", "data.root=videos")
METHOD = ("method=cvrl", "data=video_folder", "method.view.frames=3", "method.view.size=16", "method.view.blur=0")
METHOD += ("method.view2_blur=0", "method.hidden_dim=16", "method.dim=8", "knn.k=3", "monitor.k=3", "train.device=cpu")
TINY = ("backbone.cifar_stem=true", "backbone.width=8", 'backbone.depth="1,1,1,1"', "train.batch_size=4")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/{train,test}/<class>/<video>/<frame>.png: a bar that moves one way or the other over a grey ground."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    for split, num in (("train", 6), ("test", 3)):
        for label in CLASSES:
            for i in range(num):
                ground = rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
                inside = folder / "videos" / split / label / str(i)
                inside.mkdir(parents=True)
                for t in range(8):
                    frame = ground.copy()
                    begin = 2 * t if label == "right" else SIDE - 4 - 2 * t
                    frame[:, begin : begin + 4] = 255
                    Image.fromarray(frame).save(inside / f"{t}.png")
    return folder


@pytest.fixture(scope="module")
def pretrained(videos: Path, run_recipe: Any) -> Any:
    return run_recipe("pretrain", *METHOD, *TINY, *LOADING, "train.epochs=2", "eval_clips=2", "run=r", folder=videos)


def test_pretrain(videos: Path, pretrained: Any) -> None:
    assert pretrained["steps"] == 6 and pretrained["skipped_steps"] == 0
    assert 0 <= pretrained["knn_top1"] <= 1 and 0 <= pretrained["knn_top1_random_init"] <= 1
    stage = videos / "runs" / "r" / "pretrain"
    view = json.loads((stage / "backbone.json").read_text())["preprocessing"]
    assert {name: view[name] for name in ("kind", "frames", "stride", "place", "clips")} == {
        "kind": "clip", "frames": 3, "stride": 2, "place": "even", "clips": 2
    }  # fmt: skip
    assert Image.open(stage / "neighbours.png").size[0] > 100


def test_probe_and_embed_take_the_clips(videos: Path, pretrained: Any, run_recipe: Any) -> None:
    probed = run_recipe("probe", "run=r", "knn.k=3", "device=cpu", folder=videos)
    assert probed["knn_top1"] == pretrained["knn_top1"]  # the same features
    assert probed["features"]["view"]["clips"] == 2 and probed["features"]["view"]["frames"] == 3
    settings = ("run=r", "data=video_folder", *LOADING, "device=cpu")
    run_recipe("embed", *settings, "split=test", folder=videos)
    run_recipe("embed", *settings, "split=test", "clips=5", "stage=embed_5", folder=videos)
    two, five = (np.load(videos / f"runs/r/{stage}/features.npz") for stage in ("embed", "embed_5"))
    assert two["names"].tolist() == five["names"].tolist() and two["names"][0] == "test/left/0"
    assert two["h"].shape == five["h"].shape == (6, 64) and not np.allclose(two["h"], five["h"])
    assert two["labels"].tolist() == [0, 0, 0, 1, 1, 1]


def test_finetune(videos: Path, pretrained: Any, run_recipe: Any) -> None:
    settings = ("run=r", "train.epochs=1", "train.batch_size=4", "train.device=cpu")
    result = run_recipe("finetune", *settings, folder=videos)
    protocol = result["protocol"]
    assert 0 <= result["top1"] <= 1 and protocol["num_images"] == 6 and protocol["view"]["clips"] == 2


@pytest.mark.nightly
def test_a_3d_network_and_a_method_of_images(videos: Path, run_recipe: Any) -> None:
    network = ("backbone.name=r3d_18", 'backbone.depth="1,1,1,1"', "train.batch_size=4", "train.epochs=1")
    result = run_recipe("pretrain", *METHOD, *network, *LOADING, "eval_clips=1", "run=r3d", folder=videos)
    assert result["steps"] == 3
    images = (
        "method=simclr",
        "data=video_folder",
        "method.view.size=16",
        "method.view.blur=0",
        "knn.k=3",
        "monitor.k=3",
    )
    images += ("method.hidden_dim=16", "method.dim=8", "train.device=cpu", "train.epochs=1")
    assert run_recipe("pretrain", *images, *TINY, *LOADING, "run=frames", folder=videos)["steps"] == 3


def test_what_does_not_fit_is_said(videos: Path, pretrained: Any, run_recipe: Any) -> None:
    said = run_recipe("pretrain", "method=cvrl", folder=videos, code=2)
    assert said == "error: data: expected videos for views of kind 'clip', got images (data=video_folder reads videos)"
    said = run_recipe("export", "run=r", "images=noise", folder=videos, code=2)
    assert said.startswith("error: input: expected a backbone of images, got one of clips")


def test_a_sheet_shows_clips_as_rows_of_frames(videos: Path, run_recipe: Any) -> None:
    settings = ("method=cvrl", "data=video_folder", *LOADING, "size=20", "num_images=2", "run=sheet")
    result = run_recipe("views", *settings, "engines=[torchvision]", folder=videos)
    assert result["views"] == ["clip1", "clip2"]
    sheet = np.array(Image.open(videos / "runs/sheet/views/torchvision.png"))
    assert sheet.shape == (14 + 2 * 26, 20 + 2 * 16 * 20 + 3 * 6, 3)
    assert sheet[14:34, 26 : 26 + 16 * 20].std() > 5
