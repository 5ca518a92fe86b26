"""Training with SAM, Lookahead and gradient centralisation: configured by name, resumed bit by bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_fast.train.checkpoint import Checkpoints
from tests.train.children import differing
from tests.train.runs import Losses, make_method, make_trainer

AROUND = {"sam_rho": 0.05, "lookahead_k": 4, "centralize": True}
SIZES = {"batch_size": 12, "epochs": 2}  # 10 steps


@pytest.mark.parametrize("name", ["sgd", "lamb", "adamw"])
def test_a_run_that_crashed_and_was_resumed_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    def trainer(folder: str) -> Any:
        method = make_method("byol", norm="batch", name=name, **AROUND)
        return make_trainer(method, checkpoints=Checkpoints(tmp_path / folder), checkpoint_steps=3, **SIZES)

    class Fragile(Losses):
        def log(self, step: int, **values: Any) -> None:
            if step == 8:
                raise RuntimeError("crash")
            super().log(step, **values)

    whole: Any = Losses()
    trainer("whole").fit(whole)
    with pytest.raises(RuntimeError, match="crash"):
        trainer("parts").fit(Fragile())
    again, rest = trainer("parts"), Losses()
    assert again.resume() == 6  # in the middle of Lookahead's count
    again.fit(rest)
    assert rest.values == whole.values[6:]
    states = [Checkpoints(tmp_path / folder).load()[0] for folder in ("whole", "parts")]
    assert states[0]["optimizer"]["lookahead"]["steps"] == 10 % 4
    for state in states:
        state.pop("seconds")
    assert list(differing(*states)) == []


def test_a_step_that_is_not_finite_in_the_second_pass_changes_nothing() -> None:
    method = make_method("simclr", norm="batch", name="sgd", lr=0.1, **AROUND)
    trainer = make_trainer(method, **SIZES)
    batch = next(iter(trainer.loader.epoch(0)))
    assert trainer.step_runner(batch, 0.0, 0).finite
    judge, calls = trainer.step_runner._judge, []

    def failing(losses: Any, watched: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            next(p for p in method.parameters() if p.grad is not None).grad.fill_(torch.nan)
        return judge(losses, watched)

    trainer.step_runner._judge = failing
    before = [p.clone() for p in method.parameters()]
    assert not trainer.step_runner(batch, 0.0, 1).finite
    assert len(calls) == 2
    assert all(p.equal(b) for p, b in zip(method.parameters(), before, strict=True))


def test_batch_statistics_move_once_a_step() -> None:
    method = make_method("simclr", norm="batch", name="sgd", **AROUND)
    trainer = make_trainer(method, **SIZES)
    trainer.step_runner(next(iter(trainer.loader.epoch(0))), 0.0, 0)
    counts = {
        m.num_batches_tracked.item() for m in method.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    }
    twin = make_method("simclr", norm="batch", name="sgd")
    plain = make_trainer(twin, **SIZES)
    plain.step_runner(next(iter(plain.loader.epoch(0))), 0.0, 0)
    assert counts == {
        m.num_batches_tracked.item() for m in twin.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    }
