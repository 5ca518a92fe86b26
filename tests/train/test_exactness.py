"""The same training, cut differently, is the same: over ranks (unequal parts too) and over microbatches.

GroupNorm in place of BatchNorm, plain SGD (an adaptive optimiser hides a wrong factor in the gradients).
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import run_ranks
from tests.train.runs import DAY_AND_NIGHT, first_gradients, make_method, train_losses

BATCH = 13  # 7 + 6 on two ranks, 5 + 4 + 4 on three
EPOCHS = 5  # of 4 steps: 20 steps
SGD = {"name": "sgd", "momentum": 0.0}


def everything(names: Sequence[str], **train: Any) -> dict[str, Any]:
    """Losses of 20 steps in float64 and gradients of the first step in float32, for each method."""
    found: dict[str, Any] = {}
    for name in names:
        double = make_method(name, dtype=torch.float64, **SGD)
        found[f"{name}/losses"] = train_losses(double, batch_size=BATCH, epochs=EPOCHS, **train)
        found[f"{name}/gradients"] = first_gradients(make_method(name, **SGD), batch_size=BATCH, **train)
    return found


def on_a_rank(rank: int, world_size: int, file: Path, names: Sequence[str], train: dict[str, Any]) -> None:
    found = everything(names, **train)
    if rank == 0:
        torch.save(found, file)


@pytest.fixture(scope="module")
def names(request: pytest.FixtureRequest) -> list[str]:
    """The methods of the tests that were selected."""
    mine = (item for item in request.session.items if item.path == request.path)
    return sorted({item.callspec.params["name"] for item in mine})  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> Callable[[str], dict[str, Any]]:
    """What a cut gives, for all methods."""

    @functools.cache
    def found(cut: str) -> dict[str, Any]:
        world_size, train = CUTS[cut]
        if world_size == 1:
            return everything(names, **train)
        file = tmp_path_factory.mktemp("ranks") / "found.pt"
        run_ranks(on_a_rank, world_size, file.parent, file, names, train)
        return torch.load(file, weights_only=True)  # type: ignore[no-any-return]

    return found


ALONE = "1 rank, whole"
CUTS: dict[str, tuple[int, dict[str, Any]]] = {
    ALONE: (1, {}),
    "2 ranks, whole": (2, {}),
    "3 ranks, whole": (3, {}),
    "2 ranks, microbatched": (2, {"microbatch": 3}),
    "1 rank, microbatched": (1, {"microbatch": 4}),
}
# What two whole ranks could show wrong, three do, and two with microbatches.
EACH = [pytest.param(c, marks=pytest.mark.nightly if c == "2 ranks, whole" else ()) for c in CUTS if c != ALONE]


@pytest.mark.parametrize("cut", EACH)
@pytest.mark.parametrize("name", DAY_AND_NIGHT)
def test_losses_of_twenty_steps_are_equal_in_float64(name: str, cut: str, found: Any) -> None:
    expected, got = found(ALONE)[f"{name}/losses"], found(cut)[f"{name}/losses"]
    assert len(expected) == 20
    assert len(set(expected)) == 20  # it trains
    assert max(abs(a - b) for a, b in zip(expected, got, strict=True)) <= 1e-9


@pytest.mark.parametrize("cut", EACH)
@pytest.mark.parametrize("name", DAY_AND_NIGHT)
def test_gradients_of_the_first_step_are_equal_in_float32(name: str, cut: str, found: Any) -> None:
    expected, got = found(ALONE)[f"{name}/gradients"], found(cut)[f"{name}/gradients"]
    assert expected.keys() == got.keys()
    difference = sum((expected[k] - got[k]).double().pow(2).sum() for k in expected) ** 0.5
    size = sum(expected[k].double().pow(2).sum() for k in expected) ** 0.5
    assert size > 0
    assert difference <= 1e-5 * size
