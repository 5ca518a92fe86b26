"""The order of copies and uses, on a CPU; and on a GPU the same batches as without."""

import numpy as np
import pytest
import torch

from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.prefetch import ahead_of_use
from ssl_fast.data.views import Batch, View


def batch(number):
    return Batch((torch.full((2, 3, 4, 4), float(number)),), None, torch.tensor([number, number]))


class Recorded:
    """Copies that write down when they are begun and finished."""

    def __init__(self):
        self.log = []

    def begin(self, batch):
        self.log.append(f"begin {int(batch.index[0])}")
        return batch

    def finish(self, pending):
        self.log.append(f"finish {int(pending.index[0])}")
        return pending


@pytest.mark.parametrize("num", [0, 1, 3])
def test_the_next_copy_is_on_its_way_before_a_batch_is_used(num):
    copies = Recorded()
    for used in ahead_of_use(map(batch, range(num)), copies):
        copies.log.append(f"use {int(used.index[0])}")
    expected = ["begin 0"] if num else []
    for i in range(num):
        expected += [f"begin {i + 1}"] * (i + 1 < num) + [f"finish {i}", f"use {i}"]
    assert copies.log == expected


def test_all_tensors_of_a_batch_are_named():
    whole = Batch((torch.zeros(1), torch.ones(1)), torch.tensor([2]), torch.tensor([3]), {"mask": torch.tensor([4])})
    assert [int(t[0]) for t in whole.tensors()] == [0, 1, 2, 3, 4]
    assert len(batch(0).tensors()) == 2


@pytest.mark.gpu
@pytest.mark.parametrize(("engine", "workers"), [("fused", 0), ("fused", -1), ("torchvision", 2)])
def test_batches_on_a_gpu_are_those_on_the_cpu(engine, workers):
    images = np.random.default_rng(0).integers(0, 256, (70, 40, 40, 3), dtype=np.uint8)
    dataset = ArrayDataset(images, np.arange(70) % 7, [])

    def batches(device):
        options = {"batch_size": 16, "seed": 1, "shuffle": True, "drop_last": False, "device": device}
        source = Loader(dataset, [View(size=32)], LoaderConfig(engine, workers), **options)
        for one in source.epoch(0):
            assert one.views[0].device.type == device
            torch.cuda._sleep(2_000_000)  # the step: the next copy must not write over what it reads
            yield one.views[0].clone().cpu(), one.index.cpu()
        assert device == "cpu" or source.collect()["copy"] > 0

    for (ours, i), (theirs, j) in zip(batches("cuda"), batches("cpu"), strict=True):
        assert torch.equal(i, j) and torch.equal(ours, theirs)
