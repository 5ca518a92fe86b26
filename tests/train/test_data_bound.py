"""A run that waits for its data says so, on its lines and in metrics.jsonl, and what would help."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.train.tracking import Tracker
from ssl_fast.train.trainer import TrainConfig, Trainer
from tests.train.runs import make_method, pictures


class Slow(ArrayDataset):
    """Pictures that come from far away."""

    delay = 0.0

    def fetch(self, index: Any) -> Any:
        time.sleep(self.delay)
        return super().fetch(index)


def run(folder: Path, delay: float) -> list[dict[str, Any]]:
    source = pictures()
    assert source.arrays is not None
    dataset = Slow(source.arrays, source.labels, source.classes)
    dataset.delay = delay
    method = make_method("simclr")
    views = tuple(replace(view, mean=dataset.mean, std=dataset.std) for view in method.views(method.config))
    config = LoaderConfig("torchvision", workers=0)
    loader = Loader(dataset, views, config, batch_size=20, seed=0, shuffle=True, drop_last=True)
    trainer = Trainer(method, loader, TrainConfig(epochs=2, batch_size=20, log_every=3, device="cpu"))
    tracker = Tracker(folder)
    trainer.fit(tracker)
    tracker.close()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_slow_data_set_is_noticed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = run(tmp_path, delay=0.4)
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        assert 1.2 <= line["time_waited_seconds"] < 10 and line["time_decode_seconds"] >= 1.2
        assert 0 < line["time_augment_seconds"] < line["time_decode_seconds"]
        assert line["time_data"] > 0.5
        assert line["time_verdict"].startswith(f"data-bound: {line['time_data']:.0%} of the step; try data.")
    shown = capfd.readouterr().err.splitlines()[-1]
    assert re.search(
        r"waited \d+\.\d s for data \(decode \d+%, augment \d+%\)  data-bound: \d+% of the step; try", shown
    )


def test_data_that_are_no_hindrance_get_no_verdict(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = run(tmp_path, delay=0.0)
    assert all(line["time_waited_seconds"] >= 0 for line in lines)
    for line in lines:
        assert ("time_verdict" in line) == (line["time_data"] >= 0.1)
