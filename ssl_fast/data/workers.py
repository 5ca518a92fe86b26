"""Whole batches made in this process or in worker processes: a batch is one unit of work, one message, one transfer."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ssl_fast.data.dataset import Dataset
from ssl_fast.data.engine_torchvision import TorchvisionEngine
from ssl_fast.data.views import Batch, draw


@dataclass
class Job:
    """A batch to be made: the samples, and the key of their randomness."""

    seed: int
    epoch: int
    index: NDArray[np.int64]  # [N]


Parts = tuple[tuple[Tensor, ...], Tensor | None, Tensor]  # views, labels, index: what crosses between processes
Source = Callable[[list[Job]], Iterator[Batch]]


class BatchMaker(TorchDataset[Parts]):
    """Turns jobs into batches."""

    def __init__(self, dataset: Dataset, engine: TorchvisionEngine) -> None:
        self.dataset, self.engine = dataset, engine

    def __getitem__(self, job: Any) -> Parts:
        images, found = self.dataset.fetch(job.index)
        sizes = np.array([image.shape[:2] for image in images], dtype=np.int64).reshape(-1, 2)
        table = draw(self.engine.views, job.seed, job.epoch, job.index, sizes)
        labels = self.dataset.labels
        chosen = None if labels is None else torch.from_numpy(labels[found])
        return self.engine(images, table), chosen, torch.from_numpy(np.array(found))


def make_batch(dataset: Dataset, engine: TorchvisionEngine) -> BatchMaker:
    """The maker of a data set's batches."""
    return BatchMaker(dataset, engine)


def in_process(maker: BatchMaker) -> Source:
    """Batches made when they are asked for."""
    return lambda jobs: (Batch(*maker[job]) for job in jobs)


def start_workers(maker: BatchMaker, workers: int, prefetch: int, start_method: str, pin: bool) -> Source:
    """Batches made ahead by `workers` processes, which live as long as the returned source."""
    jobs: list[Job] = []
    loader: DataLoader[Any] = DataLoader(
        maker,
        batch_size=None,
        sampler=jobs,
        num_workers=workers,
        prefetch_factor=prefetch,
        persistent_workers=True,
        multiprocessing_context=start_method,
        pin_memory=pin,
        worker_init_fn=_settle,
    )

    def batches(wanted: list[Job]) -> Iterator[Batch]:
        jobs[:] = wanted
        return (Batch(tuple(views), labels, index) for views, labels, index in iter(loader))

    return batches


def _settle(worker: int) -> None:
    """One thread a worker; signals are the trainer's business: it must get its batches until its checkpoint is written.

    A worker still ends when its parent does: torch's workers look for it every few seconds.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
