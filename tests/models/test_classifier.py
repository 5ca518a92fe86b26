"""Heads on disk: what is written comes back, and what does not fit is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_fast.models.classifier import Classifier, load_head, save_head


def test_a_head_comes_back(tmp_path: Path) -> None:
    head = nn.Linear(5, 3)
    names = ["cat", "naïve", "日本"]
    assert save_head(tmp_path / "new", head, names) == ["head.safetensors", "classes.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["classes.json", "head.safetensors"]
    again, classes = load_head(tmp_path / "new")
    assert classes == names
    assert torch.equal(again.weight, head.weight) and torch.equal(again.bias, head.bias)


def test_classifier_is_the_head_on_the_backbone() -> None:
    backbone, head = nn.Flatten(), nn.Linear(12, 3)
    x = torch.randn(2, 3, 2, 2)
    assert torch.equal(Classifier(backbone, head)(x), head(x.flatten(1)))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classes: expected 3 names, one for each output, got 2"):
        save_head(tmp_path, nn.Linear(5, 3), ["a", "b"])
    with pytest.raises(ValueError, match=r"no head.safetensors in .*: expected the folder of a finished"):
        load_head(tmp_path)
    save_head(tmp_path, nn.Linear(5, 3), ["a", "b", "c"])
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b"]))
    with pytest.raises(ValueError, match=r"expected weight \[2, F\] and bias, got"):
        load_head(tmp_path)
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(ValueError, match=r"classes.json is not a list of names"):
        load_head(tmp_path)
