import builtins
import io
import json
import os
import pty
import re
import select
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

from ssl_fast.train.tracking import Progress, Tracker


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(folder: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "time"} for line in lines(folder)]


def write(folder: Path, steps: range, start: int = 0) -> None:
    tracker = Tracker(folder, start=start)
    for step in steps:
        tracker.log(step, epoch=step // 4, loss=1.0 / step)
        if step % 4 == 0:
            tracker.log(step, knn_top1=step / 100)
    tracker.close()


def test_each_line_is_json_with_step_time_and_values(tmp_path: Path):
    before = time.time()
    tracker = Tracker(tmp_path)
    tracker.log(1, epoch=0, loss=torch.tensor(2.5), bad=float("nan"), name="x")
    (line,) = lines(tmp_path)  # flushed: another process sees it at once
    assert before - 1 <= line.pop("time") <= time.time() + 1
    assert line == {"step": 1, "epoch": 0, "loss": 2.5, "bad": None, "name": "x"}
    tracker.close()
    tracker.log(2, loss=0.0)
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("resumed", [0, 4, 7, 8])
@pytest.mark.parametrize("torn", [b"", b'{"step": 1', b"\x00\x00", b'{"loss": 1}\n'])
def test_a_resumed_run_leaves_the_lines_of_an_uninterrupted_one(tmp_path: Path, resumed: int, torn: bytes):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    write(whole, range(1, 13))
    write(cut, range(1, 10))
    with open(cut / "metrics.jsonl", "ab") as file:
        file.write(torn)
    write(cut, range(resumed + 1, 13), start=resumed)
    assert untimed(cut) == untimed(whole)


def test_tensorboard_holds_the_same_numbers(tmp_path: Path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, steps in ((0, range(1, 6)), (3, range(4, 8))):
        tracker = Tracker(tmp_path, tensorboard=True, start=start)
        for step in steps:
            tracker.log(step, loss=step / 2, name="x", bad=float("inf"))
        tracker.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(s, s / 2) for s in range(1, 8)]


def test_wandb_offline_writes_below_the_stage(tmp_path: Path):
    pytest.importorskip("wandb")
    tracker = Tracker(tmp_path, wandb="offline", run_name="first", config={"epochs": 3})
    tracker.log(1, loss=0.5)
    tracker.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert run.stat().st_size > 0
    assert untimed(tmp_path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    ("options", "package", "message"),
    [
        ({"tensorboard": True}, "torch.utils.tensorboard", r"pip install ssl_fast\[recipes\]"),
        ({"wandb": "offline"}, "wandb", r"pip install ssl_fast\[wandb\]"),
    ],
)
def test_an_absent_package_is_named_with_its_extra(tmp_path: Path, monkeypatch, options: dict, package, message: str):
    original = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == package:
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RuntimeError, match=message):
        Tracker(tmp_path, **options)


def test_an_unknown_wandb_mode_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="wandb must be one of off, offline, online, got 'yes'"):
        Tracker(tmp_path, wandb="yes")


def test_nothing_optional_is_imported_without_its_switch(tmp_path: Path, in_child):
    def work() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in ("wandb", "tensorboard")]:
            del sys.modules[name]
        tracker = Tracker(tmp_path)
        tracker.log(1, loss=1.0)
        tracker.close()
        assert not {"wandb", "tensorboard"} & set(sys.modules)

    assert in_child(work) == 0


# progress


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("ssl_fast.train.tracking.time", clock)
    return clock


def test_plain_lines_come_at_intervals_with_rate_shares_and_time_left(clock: Clock):
    stream = io.StringIO()
    progress = Progress(total=100, start=20, batch_size=256, interval=10.0, stream=stream)
    for step in range(21, 101):
        clock.now += 2.0
        progress.update(
            step, {"loss": 1.23456, "knn": torch.tensor(0.5)}, {"data": 0.5, "forward": 0.5, "backward": 1.0}
        )
    progress.close()
    written = stream.getvalue().splitlines()
    assert len(written) == 16  # every fifth of 80 steps
    expected = "step 25/100  loss 1.235  knn 0.5  128 images/s  data 25%  forward 25%  backward 50%  0:02:30 left"
    assert written[0] == expected
    assert written[-1].startswith("step 100/100") and written[-1].endswith("0:00:00 left")


def test_the_last_step_is_told_whatever_the_interval(clock: Clock):
    stream = io.StringIO()
    progress = Progress(total=2, start=0, batch_size=1, interval=1e9, stream=stream)
    for step in (1, 2):
        progress.update(step, {}, {})
    assert [line[:8] for line in stream.getvalue().splitlines()] == ["step 2/2"]


def everything_on(controller: int) -> str:
    text = b""
    while select.select([controller], [], [], 0.1)[0]:
        text += os.read(controller, 65_536)
    return text.decode()


@pytest.mark.parametrize("columns", [120, 0])
def test_a_terminal_with_a_width_gets_a_bar(columns: int):
    pytest.importorskip("tqdm")
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    with os.fdopen(terminal, "w") as stream:
        progress = Progress(total=10, start=4, batch_size=8, stream=stream)
        progress.update(5, {"loss": 1.0}, {"data": 1.0, "forward": 3.0})
        progress.write("a line of its own")
        progress.update(10, {"loss": 0.25}, {"data": 1.0, "forward": 3.0})
        progress.close()
        text = everything_on(controller)
    os.close(controller)
    assert "a line of its own\r\n" in text
    final = text.rstrip().split("\r")[-1]
    assert "10/10" in final and "loss 0.25" in final
    assert re.search(r"[\d,]+ images/s  data 25%  forward 75%", final)
    assert ("100%|" in final) == (columns > 0)


def test_other_ranks_are_silent(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("ssl_fast.distributed.rank", lambda: 1)
    stream = io.StringIO()
    progress = Progress(total=1, start=0, batch_size=1, interval=0.0, stream=stream)
    progress.update(1, {"loss": 1.0}, {})
    progress.write("text")
    progress.close()
    tracker = Tracker(tmp_path, tensorboard=True, wandb="offline")
    tracker.log(1, loss=1.0)
    tracker.close()
    assert stream.getvalue() == "" and list(tmp_path.iterdir()) == []
