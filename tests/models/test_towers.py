"""The files of two towers: the same weights again, and what is said of damaged ones."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("open_clip")

from ssl_fast.models.text import TextConfig, TextTower
from ssl_fast.models.towers import load_towers, save_towers

CONFIG = TextConfig(width=16, layers=1, heads=2, context_length=8, vocab_size=600)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_towers(tmp_path, nn.Linear(6, 4, bias=False), TextTower(CONFIG, 4))
    return tmp_path


def test_the_same_weights_again(folder: Path) -> None:
    torch.manual_seed(0)
    projection, tower = nn.Linear(6, 4, bias=False), TextTower(CONFIG, 4)
    found_projection, found_tower = load_towers(folder)
    assert torch.equal(found_projection.weight, projection.weight) and found_tower.config == CONFIG
    state, found = tower.state_dict(), found_tower.state_dict()
    assert state.keys() == found.keys() and all(torch.equal(state[name], found[name]) for name in state)
    assert not found_tower.training and sorted(p.name for p in folder.iterdir()) == [
        "towers.json",
        "towers.safetensors",
    ]


def test_what_is_missing_or_damaged_is_said(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(
        ValueError, match=r"no towers.safetensors in .*: expected a finished pretrain stage of method=clip"
    ):
        load_towers(tmp_path_factory.mktemp("empty"))
    description = json.loads((folder / "towers.json").read_text())
    description["text"]["width"] = 32
    (folder / "towers.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"towers.safetensors does not fit towers.json"):
        load_towers(folder)
    (folder / "towers.json").write_text("{}")
    with pytest.raises(ValueError, match=r"towers.json is no description of two towers: 'format'"):
        load_towers(folder)
    (folder / "towers.json").write_text(json.dumps(description | {"format": 2}))
    with pytest.raises(ValueError, match=r"format 2, expected 1"):
        load_towers(folder)
    (folder / "towers.json").write_text(json.dumps(description | {"text": {"width": 16}}))
    (folder / "towers.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"towers.safetensors cannot be read"):
        load_towers(folder)
