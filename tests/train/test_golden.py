"""Golden losses: the first steps of every method, in float64, are those that were written down.

A change of views, initialisation, networks, losses or schedule shows here. Where one is meant, or a method is new:
SSL_FAST_WRITE_GOLDEN=1 pytest tests/train/test_golden.py
"""

import json
import os
from pathlib import Path

import pytest
import torch

from tests.train.runs import METHODS, make_method, train_losses

FILE = Path(__file__).with_name("golden.json")
GOLDEN = json.loads(FILE.read_text()) if FILE.exists() else {}


def first_losses(name: str) -> list[float]:
    method = make_method(name, norm="batch", dtype=torch.float64)
    return train_losses(method, batch_size=12, epochs=1)


@pytest.mark.parametrize("name", METHODS)
def test_the_first_losses_are_those_written_down(name: str) -> None:
    found = first_losses(name)
    assert found == first_losses(name), "two runs on one machine differ"
    if os.environ.get("SSL_FAST_WRITE_GOLDEN"):
        GOLDEN[name] = found
        FILE.write_text(json.dumps(GOLDEN, indent=2, sort_keys=True) + "\n")
    assert name in GOLDEN, "no losses are written down for this method"
    assert found == pytest.approx(GOLDEN[name], rel=1e-5)
