"""The training loop's own small promises: seeds of any size, and what is logged as the learning rate."""

from typing import Any

import pytest

from ssl_fast.train.trainer import Interrupted
from tests.train.runs import make_method, make_trainer


class Lines:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def log(self, step: int, **values: Any) -> None:
        self.found.append(values)


@pytest.mark.parametrize("seed", [0, 1 << 24, 20260101, (1 << 63) - 1])
def test_any_seed_trains(seed: int) -> None:
    trainer = make_trainer(make_method("simclr", norm="group"), batch_size=8, epochs=1, seed=seed)
    assert trainer.fit()["steps"] == len(trainer.loader)


def test_a_seed_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"train.seed: expected a number from 0 to 2\*\*63 - 1, got -1"):
        make_trainer(make_method("simclr", norm="group"), batch_size=8, epochs=1, seed=-1)


def test_the_logged_rate_is_the_schedules() -> None:
    """SimSiam's predictor has a rate of its own, in a group that comes first."""
    trainer = make_trainer(make_method("simsiam", norm="group"), batch_size=8, epochs=2)
    lines: Any = Lines()
    trainer.fit(lines)
    rates = [line["lr"] for line in lines.found]
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0] / 2
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.base_lr


def test_an_interruption_is_no_error_that_broken_files_are_passed_over_for() -> None:
    assert not issubclass(Interrupted, Exception)
