import gc
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_fast.data import engine_fused
from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.datasets.image_folder import ImageFolder
from ssl_fast.data.engine_torchvision import TorchvisionEngine
from ssl_fast.data.loader import Loader, LoaderConfig, choose_engine
from ssl_fast.data.views import View
from ssl_fast.data.workers import BatchMaker, Job, ahead

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

VIEWS = (
    View("a", size=16, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grayscale=0.2, blur=0.5),
    View("b", size=24, solarize=0.5),
)


def photos(num=70):
    images = np.random.default_rng(0).integers(0, 256, (num, 20, 20, 3), dtype=np.uint8)
    return ArrayDataset(images, np.arange(num) % 7, [])


@pytest.fixture(scope="module", params=["fused", "torchvision"])
def engine(request):
    """What `loader` uses; tests of what is in the batches run with each."""
    loader.engine = request.param
    yield request.param
    loader.engine = "fused"


def loader(dataset=None, workers=0, start_method="fork", **options):
    options = {"batch_size": 16, "seed": 1, "shuffle": True, "drop_last": False} | options
    config = LoaderConfig(loader.engine, workers, 2, start_method)
    return Loader(photos() if dataset is None else dataset, VIEWS, config, **options)


loader.engine = "fused"


def by_sample(batches):
    """{sample: (label, bits of its views)}."""
    return {
        int(i): (int(b.labels[n]), *(v[n].contiguous().numpy().tobytes() for v in b.views))
        for b in batches
        for n, i in enumerate(b.index)
    }


@pytest.fixture(scope="module")
def whole(engine):
    """Epoch 3, made in this process with one rank."""
    return list(loader().epoch(3))


def test_an_epoch_has_each_sample_once_in_a_new_order_each_time(whole):
    assert [len(b) for b in whole] == [16, 16, 16, 16, 6] and len(loader()) == 5
    order = torch.cat([b.index for b in whole])
    assert sorted(order.tolist()) == list(range(70))
    assert order.tolist() == loader().order(3).tolist() != loader().order(4).tolist()
    assert all(torch.equal(b.labels, b.index % 7) for b in whole)
    assert [v.shape[1:] for v in whole[0].views] == [(3, 16, 16), (3, 24, 24)]
    assert whole[0].views[0].is_contiguous(memory_format=torch.channels_last)


def test_the_same_epoch_again_is_the_same_and_another_is_not(whole):
    again = loader()
    assert by_sample(again.epoch(3)) == by_sample(whole)
    assert by_sample(again.epoch(4)) != by_sample(whole)
    assert by_sample(loader(seed=2).epoch(3)) != by_sample(whole)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_no_bit(whole, workers):
    source = loader(workers=workers)
    for _ in range(2):  # the workers stay and serve again
        batches = list(source.epoch(3))
        assert [b.index.tolist() for b in batches] == [b.index.tolist() for b in whole]
        assert by_sample(batches) == by_sample(whole)
    assert source.waited > 0 and source.engine == loader.engine
    source.close()


@pytest.mark.parametrize(("method", "workers"), [("forkserver", 1), ("thread", 1), ("thread", 3)])
def test_other_workers_change_no_bit(whole, method, workers):
    source = loader(workers=workers, start_method=method)
    assert by_sample(source.epoch(3)) == by_sample(whole)
    source.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_take_slices_of_the_global_batch(whole, workers):
    ranks = [loader(workers=workers, rank=r, world_size=3) for r in range(3)]
    parts = [list(r.epoch(3)) for r in ranks]
    for step, batch in enumerate(whole):
        assert [len(p[step]) for p in parts] == [len(s) for s in np.array_split(np.arange(len(batch)), 3)]
        assert torch.equal(torch.cat([p[step].index for p in parts]), batch.index)
        assert torch.equal(torch.cat([p[step].views[0] for p in parts]), batch.views[0])
    assert [sum(map(len, p)) for p in parts] == [26, 22, 22]


def test_batch_size_changes_no_view(whole):
    assert by_sample(loader(batch_size=9).epoch(3)) == by_sample(whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_from_a_step(whole, workers):
    source = loader(workers=workers)
    rest = list(source.epoch(3, start=3))
    assert len(rest) == 2 and by_sample(rest) == by_sample(whole[3:])
    source.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_left_early_leaves_nothing_behind(whole, workers):
    source = loader(workers=workers)
    for _ in range(3):
        for batch in source.epoch(5):
            assert len(batch) == 16
            break
    assert by_sample(source.epoch(3)) == by_sample(whole)
    source.close()


def test_drop_last_and_ascending_order():
    source = loader(drop_last=True, shuffle=False)
    assert len(source) == 4
    assert torch.cat([b.index for b in source.epoch(0)]).tolist() == list(range(64))


def test_unlabelled_batches():
    dataset = ArrayDataset(np.zeros((4, 8, 8, 3), dtype=np.uint8), None, [])
    assert all(b.labels is None for b in loader(dataset, workers=1).epoch(0))


def test_a_worker_forked_after_parallel_work_in_the_parent(whole):
    code = """
import torch, numpy as np
from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.engine_torchvision import TorchvisionEngine
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View
torch.set_num_threads(2)
torch.nn.functional.conv2d(torch.rand(64, 16, 64, 64), torch.rand(16, 16, 3, 3)) @ torch.rand(62, 62)
data = ArrayDataset(np.zeros((64, 16, 16, 3), np.uint8), None, [])
views = [View(size=16, hue=0.1, jitter=0.8, blur=0.5)]
loader = Loader(data, views, LoaderConfig(workers=2), batch_size=8, seed=0, shuffle=True, drop_last=True)
print(sum(len(b) for e in range(3) for b in loader.epoch(e)))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stdout.strip() == "192", done.stderr


class Rubbish:
    """Garbage in a circle, whose destructor says in which process it ran."""

    def __init__(self, record):
        self.record, self.circle = record, self

    def __del__(self):
        with self.record.open("a") as file:
            file.write(f"{os.getpid()}\n")


class Collecting(ArrayDataset):
    def fetch(self, index):
        gc.collect()
        return super().fetch(index)


def test_workers_do_not_collect_what_they_inherit(tmp_path):
    record = tmp_path / "record"
    dataset = Collecting(np.zeros((64, 16, 16, 3), np.uint8), None, [])
    source = loader(dataset, workers=2)
    gc.disable()
    try:
        Rubbish(record)
        assert sum(map(len, source.epoch(0))) == 64
        assert not gc.isenabled()
    finally:
        gc.enable()
    source.close()
    gc.collect()
    assert set(record.read_text().split()) == {str(os.getpid())}


SIGNALLED = """
import os, signal, sys, time
import numpy as np
from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.engine_torchvision import TorchvisionEngine
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
data = ArrayDataset(np.zeros((640, 16, 16, 3), np.uint8), None, [])
config = LoaderConfig(workers=2)
loader = Loader(data, [View(size=16)], config, batch_size=8, seed=0, shuffle=True, drop_last=True)
batches = loader.epoch(0)
next(batches)
print("ready", flush=True)
while not got:
    time.sleep(0.01)
print(1 + sum(1 for _ in batches), flush=True)  # the workers go on: the trainer finishes its step and its checkpoint
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
print(len(children), flush=True)
raise KeyboardInterrupt if sys.argv[1] == "interrupt" else SystemExit(143)
"""


@pytest.mark.parametrize("end", ["interrupt", "exit"])
def test_signals_to_the_whole_group_reach_the_trainer_alone(end):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SIGNALLED, end],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        os.killpg(process.pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        assert output.split() == ["80", "2"], errors
        assert process.returncode == (-signal.SIGINT if end == "interrupt" else 143)
        assert not living(process.pid)
    finally:
        if living(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def living(group, patience=10.0):
    """Whether a process of the group is left after `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def test_automatic_workers(monkeypatch, engine):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    images = np.lib.stride_tricks.as_strided(np.zeros(3, np.uint8), (50_000, 32, 32, 3), (0, 0, 0, 1))
    large = ArrayDataset(images, None, [], ((0.5,) * 3, (0.5,) * 3))
    assert loader(workers=-1).workers == 0  # a tiny set
    if engine == "fused":  # faster than the way from one process to another
        assert loader(large, workers=-1).workers == 0
        return
    assert loader(large, workers=-1).workers == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert loader(large, workers=-1).workers == 11
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader(large, workers=-1).workers == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 100, "drop_last": True}, "batch_size: 100 is more than the data set's 70 samples"),
        ({"batch_size": 0}, "batch_size: expected a positive number, got 0"),
        ({"batch_size": 2, "world_size": 3}, "batch_size: expected at least one sample for each of 3 ranks"),
        ({"rank": 2, "world_size": 2}, "rank: expected 0 <= rank < 2, got 2"),
        ({"workers": -2}, "workers, prefetch: expected"),
        ({"start_method": "spawn"}, "start_method: expected one of fork, forkserver, thread, got 'spawn'"),
        (
            {"dataset": ArrayDataset(np.zeros((0, 8, 8, 3), np.uint8), None, [], ((0.5,), (0.5,)))},
            "at least one sample",
        ),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        loader(**options)


def test_engines(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_engine("torchvision", photos(), cpu) == ("torchvision", "asked for")
    assert choose_engine("fused", photos(), cpu) == ("fused", "asked for")
    assert choose_engine("auto", photos(), cpu) == ("fused", "the device is a CPU, and the C++ kernels are built")
    engine, reason = choose_engine("auto", photos(), gpu)
    assert engine == "fused" and "not a folder of image files" in reason
    with pytest.raises(ValueError, match=r"expected 'auto', 'fused', 'torchvision' or 'dali', got 'dalli'"):
        choose_engine("dalli", photos(), cpu)
    with pytest.raises(RuntimeError, match=r"dali cannot be used: the data set is not a folder"):
        choose_engine("dali", photos(), cpu)
    monkeypatch.setattr(engine_fused, "unavailable", lambda: "it was not built")
    engine, reason = choose_engine("auto", photos(), cpu)
    assert engine == "torchvision" and reason.endswith("fused cannot be used: it was not built")
    with pytest.raises(RuntimeError, match=r"fused cannot be used: it was not built"):
        choose_engine("fused", photos(), cpu)


def test_a_thread_ahead_changes_no_bit(whole):
    make = engine_fused.FusedEngine if loader.engine == "fused" else TorchvisionEngine
    made = ahead(BatchMaker(photos(), make(VIEWS, 3)).batch, 2)
    jobs = [Job(1, 3, batch.index.numpy()) for batch in whole]
    next(made(jobs))  # an epoch that is given up
    batches = list(made(jobs))
    assert [b.index.tolist() for b in batches] == [b.index.tolist() for b in whole]
    assert by_sample(batches) == by_sample(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_after_the_scan_is_replaced(tmp_path, workers):
    random = np.random.default_rng(0)
    for i in range(12):
        pixels = random.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
        (tmp_path / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "set" / "ab"[i % 2] / f"{i:02}.png")
    config = ImageFolder.Config(root=str(tmp_path / "set"), test_fraction=0.0, quarantine=str(tmp_path / "q.jsonl"))
    dataset = ImageFolder(config, "train")
    before = by_sample(loader(dataset, batch_size=5).epoch(0))
    broken = dataset.names.index("a/04.png")
    (tmp_path / "set" / "a" / "04.png").write_bytes(b"no image any more")
    source = loader(dataset, workers, batch_size=5)
    batches = list(source.epoch(0))
    index = torch.cat([b.index for b in batches]).tolist()
    order = source.order(0).tolist()
    assert [i for i, j in zip(order, index, strict=True) if i != j] == [broken]
    assert index[order.index(broken)] == broken + 1
    assert all(torch.equal(b.labels, torch.from_numpy(dataset.labels)[b.index]) for b in batches)
    assert list(dataset.quarantine.files()) == ["a/04.png"]
    kept = by_sample(b.slice(n, n + 1) for b in batches for n in range(len(b)) if b.index[n] != broken + 1)
    assert kept.items() <= before.items()
    source.close()
