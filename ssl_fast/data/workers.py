"""Whole batches made in this process, by a thread of it or in worker processes.

A batch is one unit of work, one message, one transfer.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ssl_fast.data.dataset import Dataset
from ssl_fast.data.engine_fused import FusedEngine, extents_of
from ssl_fast.data.engine_torchvision import Images, TorchvisionEngine
from ssl_fast.data.scaled import on_smaller, shrinks
from ssl_fast.data.views import Batch, draw


@dataclass
class Job:
    """A batch to be made: the samples, and the key of their randomness."""

    seed: int
    epoch: int
    index: NDArray[np.int64]  # [N]


# What crosses between processes: views, labels, index, extras, and the seconds that they took.
Parts = tuple[tuple[Tensor, ...], Tensor | None, Tensor, dict[str, Tensor], dict[str, float]]
Source = Callable[[list[Job]], Iterator[Batch]]
Made = TypeVar("Made")


_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class BatchMaker(TorchDataset[Parts]):
    """Turns jobs into batches."""

    def __init__(self, dataset: Dataset, engine: TorchvisionEngine | FusedEngine) -> None:
        self.dataset, self.engine = dataset, engine

    def __getitem__(self, job: Any) -> Parts:
        began = time.perf_counter()
        images, found, table = self._scaled(job) if self.dataset.scaled_decode else self._whole(job)
        decoded = time.perf_counter()
        labels = self.dataset.labels
        chosen = None if labels is None else torch.from_numpy(labels[found])
        views = self.engine(images, table)
        augmented = time.perf_counter()
        extras = self.dataset.extras(found, job.seed, job.epoch)
        seconds = {"decode": decoded - began, "augment": augmented - decoded}
        seconds |= {"tokenize": time.perf_counter() - augmented} if extras else {}
        return views, chosen, torch.from_numpy(np.array(found)), extras, seconds

    def _whole(self, job: Job) -> tuple[Images, NDArray[np.int64], Tensor]:
        images, found = self.dataset.fetch(job.index)
        return images, found, draw(self.engine.views, job.seed, job.epoch, job.index, extents_of(images))

    def _scaled(self, job: Job) -> tuple[Images, NDArray[np.int64], Tensor]:
        """The crops are drawn first, from the sizes that are known; they say how small an image may be decoded."""
        dataset: Any = self.dataset
        table = draw(self.engine.views, job.seed, job.epoch, job.index, dataset.sizes[job.index])
        images, found = dataset.fetch(job.index, shrinks(table, self.engine.views))
        if not np.array_equal(found, job.index):  # a file broke: the table is that of the image in its place
            table = draw(self.engine.views, job.seed, job.epoch, job.index, dataset.sizes[found])
        return images, found, on_smaller(table, dataset.sizes[found], images)

    def batch(self, job: Job, pin: bool = False) -> Batch:
        """The job's batch, in pinned memory if wanted."""
        views, labels, index, extras, seconds = self[job]
        batch = Batch(views, labels, index, extras, seconds)
        return batch.pinned() if pin else batch


def in_process(maker: BatchMaker, pin: bool) -> Source:
    """Batches made when they are asked for."""
    return lambda jobs: (maker.batch(job, pin) for job in jobs)


def ahead(make: Callable[[Job], Made], prefetch: int, threads: int = 1) -> Callable[[list[Job]], Iterator[Made]]:
    """What threads of this process make of jobs, `prefetch` ahead: for what works without Python's lock.

    What is left of an epoch that was given up is not made.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ssl_fast.data")

    def source(jobs: list[Job]) -> Iterator[Made]:
        remaining = iter(jobs)
        running = deque(pool.submit(make, job) for job in islice(remaining, prefetch))
        try:
            while running:
                made = running.popleft().result()
                running.extend(pool.submit(make, job) for job in islice(remaining, 1))
                yield made
        finally:
            for future in running:
                future.cancel()

    return source


class Workers:
    """Processes that make batches ahead; they live until the object goes, or the program ends.

    Args:
        maker: what they run.
        num: how many processes.
        prefetch: batches each makes ahead.
        start_method: "fork" or "forkserver".
        pin: put the batches in pinned memory, for copies to a GPU.
    """

    def __init__(self, maker: BatchMaker, num: int, prefetch: int, start_method: str, pin: bool) -> None:
        context = multiprocessing.get_context(start_method)
        self._jobs: list[Job] = []
        self._ending: Any = context.RawValue("b", 0)  # no lock: a worker reads it in a signal handler
        self._processes: set[Any] = set()
        self._at_exit: Callable[[], None] = partial(_end, self._ending, self._processes)
        self._loader: DataLoader[Any] = DataLoader(
            maker,
            batch_size=None,
            sampler=self._jobs,
            num_workers=num,
            prefetch_factor=prefetch,
            persistent_workers=True,
            multiprocessing_context=context,
            pin_memory=pin,
            worker_init_fn=partial(_settle, self._ending),
        )

    def __call__(self, jobs: list[Job]) -> Iterator[Batch]:
        """The batches of `jobs` in order; an earlier, unfinished call is ended."""
        self._jobs[:] = jobs
        parts = iter(self._loader) if self._processes else self._start()
        return (Batch(tuple(views), *others) for views, *others in parts)

    def _start(self) -> Iterator[Any]:
        before = set(multiprocessing.active_children())
        # A forked worker must not collect what it inherits: a destructor may wait for a thread that it has not got
        # (a DALI pipeline's does). So the rubbish goes now, and `_settle` sets aside the rest.
        gc.collect()
        enabled = gc.isenabled()
        gc.disable()
        # A signal that finds a worker before its handlers are there would end it: `_settle` lets signals through.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            parts: Iterator[Any] = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            if enabled:
                gc.enable()
        self._processes.update(set(multiprocessing.active_children()) - before)
        # Registered after torch's own and multiprocessing's, so it runs before them: they would wait for workers that
        # know nothing of the end.
        atexit.register(self._at_exit)
        return parts

    def __del__(self) -> None:
        self._ending.value = 1  # whatever ends them now, torch's shutdown or a signal, may
        atexit.unregister(self._at_exit)


def _end(ending: Any, processes: set[Any]) -> None:
    ending.value = 1
    for process in processes:
        process.terminate()


def _settle(ending: Any, worker: int) -> None:
    """One thread a worker; signals are the trainer's business: it must get its batches until its checkpoint is written.

    SIGTERM is therefore obeyed only once the trainer has said that it ends. A worker whose trainer was killed ends by
    itself: torch's workers look for their parent every few seconds.
    """
    gc.freeze()
    gc.enable()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
