"""recipes/probe.py on real image patches: scores with their protocol, and a head that gives them again."""

from pathlib import Path
from typing import Any

import torch

from ssl_fast.data.datasets import open_dataset
from ssl_fast.eval.features import extract_features
from ssl_fast.eval.knn import knn_accuracy
from ssl_fast.models.backbone import load_backbone
from ssl_fast.models.classifier import load_head
from ssl_fast.train.inputs import evaluation_view


def test_scores_are_those_of_the_stored_features_and_head(folder: Path, patches: Any, run_recipe: Any) -> None:
    result = run_recipe("probe", "run=r", "knn.k=5", "linear.epochs=5", folder=folder)
    backbone, preprocessing = load_backbone(folder / "runs/r/pretrain")
    view = evaluation_view(preprocessing)
    train, test = (extract_features(backbone, open_dataset(patches, split), view) for split in ("train", "test"))
    assert train.labels is not None and test.labels is not None
    knn = knn_accuracy(train.h, train.labels, test.h, test.labels, k=5)
    assert result["knn"] == knn
    assert result["knn_top1"] == knn["top1"]
    head, classes = load_head(folder / "runs/r/probe")
    assert (head(test.h).argmax(1) == test.labels).double().mean().item() == result["linear_top1"]
    assert classes == open_dataset(patches, "train").classes
    assert result["linear"]["protocol"]["chosen_on"] == "the validation split"
    assert result["linear"]["protocol"]["num_val"] == 160
    assert result["features"]["view"]["size"] == 32
    assert 1 / 16 < result["linear_top1"] <= 1
    assert torch.is_tensor(head.weight)


def test_the_same_command_again_says_the_same(folder: Path, run_recipe: Any) -> None:
    settings = ("run=r", "stage=again", "linear.solver=logistic", "linear.max_iterations=20", "evaluate=val")
    first = run_recipe("probe", *settings, folder=folder)
    assert "L-BFGS" in first["linear"]["protocol"]["classifier"]
    assert "held out" in first["linear"]["protocol"]["chosen_on"]  # val is what is scored: nothing is chosen on it
    assert run_recipe("probe", *settings, folder=folder) == first


def test_errors_fit_in_a_sentence(folder: Path, run_recipe: Any) -> None:
    assert run_recipe("probe", folder=folder, code=2) == (
        "error: run: expected a run's name (run=...) or a stage's folder (input=...), got neither; runs has r"
    )
    missing = run_recipe("probe", "run=nobody", folder=folder, code=2)
    assert missing == "error: input: no folder runs/nobody/pretrain; run the stage pretrain first"
