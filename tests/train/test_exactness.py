"""The same training, cut differently, is the same: over ranks (unequal parts too) and over microbatches.

GroupNorm in place of BatchNorm, plain SGD (an adaptive optimiser hides a wrong factor in the gradients).
"""

from collections.abc import Sequence
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


def on_a_rank(rank: int, world_size: int, file: Path, names: Sequence[str]) -> None:
    found = {"whole": everything(names)}
    if world_size == 2:
        found["microbatched"] = everything(names, microbatch=3)
    if rank == 0:
        torch.save(found, file)


@pytest.fixture(scope="module")
def names(request: pytest.FixtureRequest) -> list[str]:
    """The methods of the tests that were selected."""
    mine = (item for item in request.session.items if item.path == request.path)
    return sorted({item.callspec.params["name"] for item in mine})  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def alone(names: list[str]) -> dict[str, Any]:
    return everything(names)


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for world_size in (2, 3):
        folder = tmp_path_factory.mktemp("ranks")
        run_ranks(on_a_rank, world_size, folder, folder / "found.pt", names)
        for kind, values in torch.load(folder / "found.pt", weights_only=True).items():
            found[f"{world_size} ranks, {kind}"] = values
    return found | {"1 rank, microbatched": everything(names, microbatch=4)}


CUTS = ("2 ranks, whole", "3 ranks, whole", "2 ranks, microbatched", "1 rank, microbatched")


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", DAY_AND_NIGHT)
def test_losses_of_twenty_steps_are_equal_in_float64(name: str, cut: str, alone: Any, cuts: Any) -> None:
    expected, got = alone[f"{name}/losses"], cuts[cut][f"{name}/losses"]
    assert len(expected) == 20
    assert len(set(expected)) == 20  # it trains
    assert max(abs(a - b) for a, b in zip(expected, got, strict=True)) <= 1e-9


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", DAY_AND_NIGHT)
def test_gradients_of_the_first_step_are_equal_in_float32(name: str, cut: str, alone: Any, cuts: Any) -> None:
    expected, got = alone[f"{name}/gradients"], cuts[cut][f"{name}/gradients"]
    assert expected.keys() == got.keys()
    difference = sum((expected[k] - got[k]).double().pow(2).sum() for k in expected) ** 0.5
    size = sum(expected[k].double().pow(2).sum() for k in expected) ** 0.5
    assert size > 0
    assert difference <= 1e-5 * size
