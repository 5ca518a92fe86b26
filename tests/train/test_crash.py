"""A run that was killed or interrupted, and then continued, ends as if nothing had happened: the same bits.

Real stages are run (folder, lock, checkpoints, metrics, product) with a tiny model, each in a forked child that may be
killed at any moment, before its first step and after its last one too.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ssl_fast import distributed
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View
from ssl_fast.models.backbone import save_backbone
from ssl_fast.train.checkpoint import Checkpoints
from ssl_fast.train.recipe import run_stage
from ssl_fast.train.run import Stage
from ssl_fast.train.tracking import Tracker
from ssl_fast.train.trainer import TrainConfig, Trainer
from tests.train.children import differing, end, start, wait_for
from tests.train.runs import DAY_AND_NIGHT, EVERY_DAY, METHODS, TRANSFORMERS, make_method, pictures, samples

EPOCHS, STEPS = 3, 5  # 15 steps; a checkpoint every 2 steps and at the end of each epoch
BATCH, SIDE = 12, 16
SHUFFLED = {"shuffle": True, "drop_last": True}
PATIENCE = 5.0  # seconds from a signal to the end of the process


@dataclass
class Config:
    method: str
    runs: str
    run: str = "run"
    stage: str = "pretrain"


def work(config: Config, stage: Stage, workers: int) -> tuple[dict[str, Any], list[str]]:
    method = make_method(config.method, norm="batch")
    dataset = samples(method, BATCH * STEPS + 3, SIDE)
    views = tuple(replace(view, mean=dataset.mean, std=dataset.std) for view in method.views(method.config))
    loader = Loader(
        dataset,
        views,
        LoaderConfig(engine="torchvision", workers=workers, prefetch=1 + workers),
        batch_size=BATCH,
        seed=0,
        **SHUFFLED,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    train = TrainConfig(
        epochs=EPOCHS, batch_size=BATCH, precision="fp32", device="cpu", log_every=1, checkpoint_steps=2
    )
    trainer = Trainer(method, loader, train, checkpoints=Checkpoints(stage.path / "checkpoints"), monitor=mean_weight)
    tracker = Tracker(stage.path, start=trainer.resume())
    figures = trainer.fit(tracker)
    tracker.close()
    if distributed.rank() == 0:
        save_backbone(stage.path, method.backbone, {})
    return {"steps": figures["steps"], "loss": figures["loss"]}, ["backbone.safetensors", "backbone.json"]


def mean_weight(backbone: torch.nn.Module) -> dict[str, float]:
    return {"mean_weight": float(torch.cat([p.flatten() for p in backbone.parameters()]).mean())}


def run(method: str, root: Path, workers: int = 0) -> None:
    """The same command each time."""
    config = Config(method, str(root))
    run_stage(config, (method, "pictures"), {}, lambda stage: work(config, stage, workers))


@dataclass
class Outcome:
    """All that a run leaves, but for times."""

    state: dict[str, Any]
    product: bytes
    metrics: list[dict[str, Any]]
    result: dict[str, Any]

    @classmethod
    def of(cls, root: Path) -> "Outcome":
        folder = root / "run" / "pretrain"
        found = Checkpoints(folder / "checkpoints").load()
        assert found is not None and json.loads((folder / "stage.json").read_text())["status"] == "finished"
        state = {key: value for key, value in found[0].items() if key != "seconds"}
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        metrics = [{k: v for k, v in line.items() if not k.startswith("time")} for line in lines]
        result = json.loads((folder / "result.json").read_text())
        return cls(state, (folder / "backbone.safetensors").read_bytes(), metrics, result)


def assert_same(outcome: Outcome, reference: Outcome) -> None:
    assert list(differing(outcome.state, reference.state)) == []
    assert outcome.product == reference.product
    assert outcome.metrics == reference.metrics
    assert outcome.result == reference.result


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> Callable[[str], tuple[Outcome, float]]:
    """What an uninterrupted run leaves, and how long it took."""
    for method in METHODS:  # imports and first calls happen here, once, and not in every child
        make_method(method)
    loader = Loader(pictures(), (View(size=SIDE),), LoaderConfig("torchvision", 0), batch_size=2, seed=0, **SHUFFLED)
    next(loader.epoch(0))
    known: dict[str, tuple[Outcome, float]] = {}

    def reference(method: str) -> tuple[Outcome, float]:
        if method not in known:
            root, began = tmp_path_factory.mktemp(method), time.perf_counter()
            assert end(start(lambda: run(method, root))) == 0
            known[method] = Outcome.of(root), time.perf_counter() - began
        return known[method]

    return reference


def kill_and_continue(method: str, root: Path, seconds: float) -> int:
    """Kill a run after some seconds, and run it again to the end; the step that the killed one had reached."""
    child = start(lambda: run(method, root))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert end(child) in (-9, 0)
    step = max(Checkpoints(root / "run" / "pretrain" / "checkpoints").steps(), default=0)
    assert end(start(lambda: run(method, root))) == 0
    return step


def test_the_reference_holds_what_is_to_be_compared(references):
    """Two uninterrupted runs agree, and the comparison covers weights, teacher, queue and optimiser."""
    for method in EVERY_DAY:
        reference, _ = references(method)
        assert reference.state["step"] == reference.result["steps"] == EPOCHS * STEPS
        assert [line["step"] for line in reference.metrics if "loss" in line] == list(range(1, EPOCHS * STEPS + 1))
        assert [line["step"] for line in reference.metrics if "mean_weight" in line] == [5, 10, 15]
        names = set(reference.state["method"])
        statistics = any(name.startswith("backbone.") and name.endswith("running_var") for name in names)
        assert statistics == (method not in TRANSFORMERS)
        assert any("teacher" in name for name in names) == hasattr(make_method(method), "teacher")
        assert any("queue" in name for name in names) == (method in ("moco", "nnclr", "swav"))
        moments = reference.state["optimizer"]["state"].values()
        assert moments and all(isinstance(m.get("momentum_buffer", m.get("exp_avg")), torch.Tensor) for m in moments)


def kills(method: str, root: Path, references, count: int) -> None:
    reference, seconds = references(method)
    chance, reached = random.Random(method), []
    for trial in range(count):  # one moment in each of `count` equal parts of the run
        moment = seconds * (trial + chance.random()) / count
        reached.append(kill_and_continue(method, root / str(trial), moment))
        assert_same(Outcome.of(root / str(trial)), reference)
    assert any(0 < step < EPOCHS * STEPS for step in reached), f"no kill fell into training: {reached}"


@pytest.mark.parametrize("method", DAY_AND_NIGHT)
def test_killed_at_random_moments(method: str, tmp_path: Path, references):
    kills(method, tmp_path, references, 5)


@pytest.mark.nightly
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_many_random_moments(method: str, tmp_path: Path, references):
    kills(method, tmp_path, references, 50)


# By day the one that has the most to lose: weights, teacher, queue and its pointer.
@pytest.mark.parametrize(
    "method", [name if name == "moco" else pytest.param(name, marks=pytest.mark.nightly) for name in METHODS]
)
def test_killed_again_and_again(method: str, tmp_path: Path, references, monkeypatch):
    """Each process dies at one of its first flushes to the disk: in a save, or in the stage's record or metrics."""
    reference, _ = references(method)

    def fragile(lives: int) -> None:
        real, count = os.fsync, 0

        def fsync(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count == lives:
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        run(method, tmp_path)

    codes = [-9]
    while codes[-1] == -9:
        lives = 4 + len(codes) % 9  # 8 flushes and more reach a checkpoint, so that the run gets on
        codes.append(end(start(lambda lives=lives: fragile(lives))))
        assert len(codes) < 50
    assert len(codes) > 6 and codes[-1] == 0
    assert_same(Outcome.of(tmp_path), reference)


def test_killed_and_continued_from_the_checkpoint_before_a_damaged_one(tmp_path: Path, references, capfd):
    reference, _ = references("moco")
    child = start(lambda: run("moco", tmp_path))
    checkpoints = Checkpoints(tmp_path / "run" / "pretrain" / "checkpoints")
    wait_for(lambda: len(checkpoints.steps()) == 2)
    os.kill(child, signal.SIGKILL)
    assert end(child) == -9
    assert checkpoints.load() is not None
    newest = checkpoints.path(checkpoints.steps()[-1])
    data = bytearray((newest / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "state.pt").write_bytes(data)
    capfd.readouterr()
    assert end(start(lambda: run("moco", tmp_path))) == 0
    assert f"checkpoint {newest} is refused: the SHA-256 of state.pt" in capfd.readouterr().err
    assert_same(Outcome.of(tmp_path), reference)


@pytest.mark.parametrize("workers", [*(pytest.param(w, marks=pytest.mark.nightly) for w in ((2, 0), (0, 1))), (1, 2)])
def test_continued_with_another_number_of_workers(workers: tuple[int, int], tmp_path: Path, references):
    reference, _ = references("simclr")
    child = start(lambda: run("simclr", tmp_path, workers[0]))
    wait_for(lambda: Checkpoints(tmp_path / "run" / "pretrain" / "checkpoints").steps())
    os.kill(child, signal.SIGKILL)
    assert end(child) == -9
    assert end(start(lambda: run("simclr", tmp_path, workers[1]))) == 0
    assert_same(Outcome.of(tmp_path), reference)


def steps_logged(root: Path) -> int:
    path = root / "run" / "pretrain" / "metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.exists() else 0


@pytest.mark.parametrize("method", DAY_AND_NIGHT)
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly)]
)
def test_a_signal_in_mid_step_leaves_a_checkpoint_and_the_exit_code(
    method: str, signum: int, code: int, tmp_path: Path, references
):
    reference, _ = references(method)
    child = start(lambda: run(method, tmp_path))
    wait_for(lambda: steps_logged(tmp_path) >= 3)
    sent = time.monotonic()
    os.kill(child, signum)
    assert end(child) == code
    assert time.monotonic() - sent < PATIENCE
    stage = json.loads((tmp_path / "run" / "pretrain" / "stage.json").read_text())
    assert (stage["status"], stage["reason"]) == ("interrupted", signal.Signals(signum).name)
    found = Checkpoints(tmp_path / "run" / "pretrain" / "checkpoints").load()
    assert found is not None and found[0]["step"] == steps_logged(tmp_path) < EPOCHS * STEPS
    assert end(start(lambda: run(method, tmp_path))) == 0
    assert_same(Outcome.of(tmp_path), reference)


def test_a_signal_at_the_end_of_an_epoch_loses_no_figures(tmp_path: Path, references, monkeypatch):
    """The interrupt is seen after an epoch's last step, whose monitor has not run yet."""
    reference, _ = references("simclr")

    def interrupted() -> None:
        real = Trainer._one_step

        def one_step(self: Trainer, batch: Any) -> Any:
            outcome = real(self, batch)
            if self.step == STEPS:
                os.kill(os.getpid(), signal.SIGTERM)
            return outcome

        monkeypatch.setattr(Trainer, "_one_step", one_step)
        run("simclr", tmp_path)

    assert end(start(interrupted)) == 143
    assert end(start(lambda: run("simclr", tmp_path))) == 0
    assert_same(Outcome.of(tmp_path), reference)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path: Path):
    def rank(number: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=number, world_size=2)
        run("simclr", tmp_path / "runs")

    children = [start(lambda number=number: rank(number)) for number in range(2)]
    wait_for(lambda: steps_logged(tmp_path / "runs") >= 2)
    os.kill(children[1], signal.SIGTERM)
    assert [end(child) for child in children] == [143, 143]
    found = Checkpoints(tmp_path / "runs" / "run" / "pretrain" / "checkpoints").load()
    assert found is not None and found[0]["step"] == steps_logged(tmp_path / "runs") < EPOCHS * STEPS
