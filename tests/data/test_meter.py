"""What is said of the time that data take: the split, whether training waits, and what would help."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from ssl_fast.data import engine_fused, meter
from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View


def test_the_split_in_words():
    assert meter.describe({"waited": 1.24}) == "waited 1.2 s for data"
    spent = {"waited": 0.5, "decode": 3.0, "augment": 1.0, "copy": 0.0}
    assert meter.describe(spent) == "waited 0.5 s for data (decode 75%, augment 25%)"


def test_the_verdict():
    assert meter.verdict(0.09, ["data.workers=8"]) == ""
    said = meter.verdict(0.31, ["data.workers=8", "data.engine=fused"])
    assert said == "data-bound: 31% of the step; try data.workers=8 or data.engine=fused"
    assert meter.verdict(0.5, []).startswith("data-bound: 50% of the step; all cores are at work")


def test_remedies_are_what_is_not_in_use_yet(monkeypatch):
    monkeypatch.setattr(engine_fused, "unavailable", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    class Source(SimpleNamespace):
        def __len__(self):
            return 100

    files = SimpleNamespace(faster_decoding=("decoded_cache",))
    slow = Source(engine="torchvision", workers=2, dataset=files)
    assert meter.remedies(slow, {"decode": 1.0, "augment": 2.0}) == ["data.engine=fused", "data.workers=8"]
    assert meter.remedies(slow, {"decode": 3.0, "augment": 2.0})[-1] == "data.decoded_cache=true"
    quick = Source(engine="fused", workers=8, dataset=files)
    assert meter.remedies(quick, {"decode": 1.0, "augment": 2.0}) == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert meter.remedies(Source(engine="fused", workers=1, dataset=files), {}) == ["data.workers=2"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_knows_what_its_batches_cost(workers):
    images = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    options = {"batch_size": 8, "seed": 0, "shuffle": True, "drop_last": True}
    source = Loader(ArrayDataset(images, None, []), [View(size=48)], LoaderConfig("torchvision", workers), **options)
    assert len(list(source.epoch(0))) == 5
    spent = source.collect()
    assert spent["waited"] > 0 and spent["augment"] > spent["decode"] > 0
    assert source.collect() == {"waited": 0.0}
    source.close()
