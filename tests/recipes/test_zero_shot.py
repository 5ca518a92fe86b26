"""recipes/zero_shot.py after recipes/pretrain.py: pairs are found again, and classes by their names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("open_clip")

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 40, 210), "yellow": (220, 210, 40)}
TINY = [
    "backbone.width=8",
    "backbone.norm=group",
    'backbone.depth="1,1,1,1"',
    "method.dim=16",
    "method.view.size=16",
    "method.text.width=32",
]
TINY += ["method.text.layers=1", "method.text.heads=2", "method.text.context_length=12", "method.text.vocab_size=1024"]
TINY += ["method.optimizer.lr=6e-3", "method.optimizer.warmup_epochs=0", "train.batch_size=16", "train.device=cpu"]
TINY += ["train.epochs=25", "train.monitor_every=0", "data.workers=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 noisy pictures of four colours, in class folders and in pairs.jsonl with two captions each."""
    folder = tmp_path_factory.mktemp("work")
    noise, lines = np.random.default_rng(0), []
    for name, colour in COLOURS.items():
        (folder / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(noise.normal(colour, 30, (20, 20, 3)), 0, 255).astype(np.uint8)
            path = f"images/{name}/{i}.png"
            Image.fromarray(pixels).save(folder / path)
            lines.append(json.dumps({"image": path, "text": [f"all is {name}", f"{name} {i}"]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("method", ["clip", pytest.param("siglip", marks=pytest.mark.nightly)])
def test_classes_by_their_names(folder: Path, run_recipe: Any, method: str) -> None:
    data = ["data=image_folder", "data.root=images", "data.captions=classes", "data.test_fraction=0.25"]
    data += ["knn.k=3", f"run={method}"]
    longer = ["train.epochs=60"] if method == "siglip" else []  # its bias of -10 has a way to go
    trained = run_recipe("pretrain", f"method={method}", *data, *TINY, *longer, folder=folder)
    assert 1 <= trained["logit_scale"] <= 100
    result = run_recipe("zero_shot", f"run={method}", folder=folder)
    assert result["num_images"] == 12 and result["top1"] >= 0.9
    assert "retrieval" not in result and len(result["templates"]) == 8  # the captions are not the pictures' own
    (folder / "t.txt").write_text("{}\n")
    short = run_recipe("zero_shot", f"run={method}", "templates=t.txt", "evaluate=all", "stage=short", folder=folder)
    assert short["num_images"] == 48 and short["templates"] == ["{}"]
    stage = json.loads((folder / "runs" / method / "short" / "stage.json").read_text())
    assert {"towers.safetensors", "towers.json", "backbone.safetensors"} <= set(stage["inputs"])


def test_captions_both_ways(folder: Path, run_recipe: Any) -> None:
    data = ["data=image_text", "data.path=pairs.jsonl", "evaluate=all"]
    run_recipe("pretrain", "method=clip", *data, "run=pairs", *TINY, folder=folder)
    result = run_recipe("zero_shot", "run=pairs", "evaluate=all", folder=folder)
    found = result["retrieval"]
    assert found["protocol"]["num_images"] == 48 and found["protocol"]["num_texts"] == 96 and "top1" not in result
    # An image's colour is learned, and nothing tells its number: ten of the 12 of one colour are looked at
    assert found["text_to_image"]["recall@10"] > 0.6
    assert 0 < found["image_to_text"]["recall@1"] <= found["image_to_text"]["recall@5"] <= 1
    # The backbone alone, under a text tower of another kind
    frozen = ["method=siglip", "method.freeze_backbone=true", "train.epochs=1"]
    weights = "backbone.weights=runs/pairs/pretrain/backbone.safetensors"
    run_recipe("pretrain", *data, *TINY, *frozen, weights, "run=frozen", folder=folder)
    ours, theirs = (folder / "runs" / run / "pretrain" / "backbone.safetensors" for run in ("frozen", "pairs"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_errors_fit_in_a_sentence(folder: Path, run_recipe: Any) -> None:
    plain = ["data=image_folder", "data.root=images", "run=plain"]
    said = run_recipe("pretrain", "method=clip", *plain, *TINY, folder=folder, code=2)
    assert said.startswith("error: data: expected a data set with captions for this method (image_text; ")
    stage = folder / "runs" / "no_towers" / "pretrain"
    stage.mkdir(parents=True)
    said = run_recipe("zero_shot", "run=no_towers", *plain[:2], folder=folder, code=2)
    assert said.startswith("error: input 'backbone.safetensors' is missing")
