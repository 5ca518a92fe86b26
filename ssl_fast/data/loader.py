"""Data set + views + engine -> batches.

The order of an epoch is a function of (seed, epoch) and every view of (seed, epoch, sample, view), so the batches are
the same for any number of workers and ranks, and the loader's state is one integer: the step.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_fast.data import engine_fused, resident
from ssl_fast.data.clips import ClipMaker, check_clips
from ssl_fast.data.dataset import Dataset
from ssl_fast.data.engine_fused import FusedEngine
from ssl_fast.data.engine_torchvision import TorchvisionEngine
from ssl_fast.data.philox import permutation
from ssl_fast.data.prefetch import CudaCopies, ahead_of_use
from ssl_fast.data.resident import ResidentSource
from ssl_fast.data.views import Batch, View
from ssl_fast.data.workers import BatchMaker, Job, Workers, ahead, in_process

_log = logging.getLogger(__name__)

START_METHODS = ("fork", "forkserver", "thread")
_SMALL_EPOCH = 1 << 26  # pixels of views per epoch: made in about the time that starting a worker takes
_AUGMENTED = 4  # a pixel of an augmented view costs about so many of a plain one
_SHARED_MEMORY = "/dev/shm"


@dataclass
class LoaderConfig:
    """How batches are made; what is in them does not depend on it.

    Args:
        engine: "auto", "fused", "torchvision" or "dali". With a GPU, fused keeps there the images of a data set that is
            in memory and fits, and makes the views there; those of other data sets it makes on the CPU.
        workers: processes that make batches; 0 makes them in the training process, -1 chooses. For images in memory the
            fused engine is faster than the way from one process to another: it then works in the training process, and
            ahead of it, in a thread, while a GPU trains.
        prefetch: batches that each worker, or that thread, makes ahead.
        start_method: of workers: "fork", "forkserver" or "thread". A forked worker shares the images in memory and
            starts at once; it never touches CUDA, and runs on one thread, which is what makes forking a process with
            threads safe here. Threads send nothing between processes: with the fused engine, which works without
            Python's lock, two of them are faster than two processes by half on JPEG files.
    """

    engine: str = "auto"
    workers: int = -1
    prefetch: int = 4
    start_method: str = "fork"


class Loader:
    """Batches of views of a data set.

    Args:
        dataset: what to read.
        views: the views to make of each sample.
        config: engine and workers: anything with LoaderConfig's fields.
        batch_size: samples of the global batch.
        seed: of order and views.
        shuffle: a new order each epoch; else ascending.
        drop_last: leave out the samples that do not fill a batch.
        rank, world_size: this process takes slice `rank` of each global batch; sizes may differ by one.
        device: where batches are wanted. For CUDA they are pinned and copied on a stream of their own, one
            batch ahead.

    Attributes:
        engine, reason: the engine that was chosen, and why.
        workers: number of processes that make batches.
        waited: seconds spent waiting for batches since `collect`.

    Raises:
        ValueError: an argument is out of its range or does not fit the data set.
    """

    def __init__(
        self,
        dataset: Dataset,
        views: Sequence[View],
        config: Any,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset, self.views, self.config = dataset, tuple(views), config
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self.waited = 0.0
        self._spent: dict[str, float] = {}
        self._copies = CudaCopies(self.device) if self.device.type == "cuda" else None
        self._check()
        self.engine, self.reason = choose_engine(config.engine, dataset, self.device, self.views)
        if config.engine == "auto" and self.engine == "torchvision" and rank == 0:
            _log.warning("data.engine: torchvision, the slowest: %s", self.reason)
        self._on_gpu = self.engine == "fused" and resident.unavailable(dataset, self.device) is None
        self.workers = 0 if self.engine == "dali" or self._on_gpu else self._num_workers()
        self._source: Any = None  # started on first use, then kept

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def order(self, epoch: int) -> NDArray[np.int64]:  # [len(dataset)]
        """The samples of an epoch in order, before they are cut into batches."""
        return permutation(len(self.dataset), self.seed, epoch) if self.shuffle else np.arange(len(self.dataset))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on. A new call ends the iteration of an earlier one."""
        order = self.order(epoch)
        jobs = [Job(self.seed, epoch, self._slice(order, step)) for step in range(start, len(self))]
        batches = self._batches(jobs)
        if self._copies is not None:
            batches = ahead_of_use(batches, self._copies)
        for _ in jobs:
            began = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - began
            for part, seconds in batch.seconds.items():
                self._spent[part] = self._spent.get(part, 0.0) + seconds
            yield batch

    def collect(self) -> dict[str, float]:
        """Seconds since the last call: "waited" by this process, and what was spent on each part, by all processes."""
        seconds = {"waited": self.waited, **self._spent}
        if self._copies is not None:
            seconds["copy"] = self._copies.seconds()
        self.waited, self._spent = 0.0, {}
        return seconds

    def close(self) -> None:
        """Ends the worker processes; the next `epoch` starts new ones."""
        self._source = None

    def _slice(
        self,
        order: NDArray[np.int64],  # [len(dataset)]
        step: int,
    ) -> NDArray[np.int64]:  # [n] this rank's samples of a step
        batch = order[step * self.batch_size : (step + 1) * self.batch_size]
        return np.array_split(batch, self.world_size)[self.rank]

    def _batches(self, jobs: list[Job]) -> Iterator[Batch]:
        if self._source is None:
            self._source = self._start()
        batches: Iterator[Batch] = self._source(jobs)
        return batches

    def _start(self) -> Any:
        if self.engine == "dali":
            from ssl_fast.data.engine_dali import DaliSource

            return DaliSource(self.dataset, self.views, -(-self.batch_size // self.world_size), self.device)
        if self._on_gpu:
            return ResidentSource(self.dataset, self.views, self.device, self.config.prefetch)
        make = FusedEngine if self.engine == "fused" else TorchvisionEngine
        channels = self.dataset.channels
        if self.dataset.videos:  # each view is of frames of its own
            maker: BatchMaker = ClipMaker(self.dataset, [make((view,), channels) for view in self.views])
        else:
            maker = BatchMaker(self.dataset, make(self.views, channels))
        pin = self.device.type == "cuda"
        if self.workers == 0:
            # Beside a training on the same cores a thread only gets in its way (benchmarks/NOTES.md).
            if pin and self.engine == "fused" and self.config.workers == -1:
                return ahead(partial(maker.batch, pin=True), self.config.prefetch)
            return in_process(maker, pin)
        if self.config.start_method == "thread":
            return ahead(partial(maker.batch, pin=pin), self.workers * self.config.prefetch, self.workers)
        return Workers(maker, self.workers, self.config.prefetch, self.config.start_method, pin)

    def _check(self) -> None:
        check_clips(self.views, self.dataset)
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected a positive number, got {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: expected 0 <= rank < {self.world_size}, got {self.rank}")
        if not len(self.dataset):
            raise ValueError("dataset: expected at least one sample, got none")
        if self.drop_last and self.batch_size > len(self.dataset):
            raise ValueError(f"batch_size: {self.batch_size} is more than the data set's {len(self.dataset)} samples")
        if self.batch_size < self.world_size:
            raise ValueError(f"batch_size: expected at least one sample for each of {self.world_size} ranks")
        if self.config.workers < -1 or self.config.prefetch < 1:
            raise ValueError(
                f"workers, prefetch: expected workers >= -1 and prefetch >= 1, got {self.config.workers}, "
                f"{self.config.prefetch}"
            )
        if self.config.start_method not in START_METHODS:
            raise ValueError(
                f"start_method: expected one of {', '.join(START_METHODS)}, got {self.config.start_method!r}"
            )

    def _num_workers(self) -> int:
        wanted = int(self.config.workers)
        return min(self._automatic_workers() if wanted == -1 else wanted, len(self))

    def _automatic_workers(self) -> int:
        """One core is left to the training; none for little work, or where shared memory could not hold the batches."""
        sample_pixels = sum(view.frames * view.size**2 for view in self.views)
        effort = sum(view.frames * view.size**2 * (_AUGMENTED if view.crop == "random" else 1) for view in self.views)
        if self.dataset.arrays is not None and (self.engine == "fused" or len(self.dataset) * effort < _SMALL_EPOCH):
            return 0
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        batch_bytes = 4 * self.dataset.channels * sample_pixels * self.batch_size // self.world_size
        room = shutil.disk_usage(_SHARED_MEMORY).free // 2 if os.path.isdir(_SHARED_MEMORY) else 0
        in_flight = batch_bytes * (int(self.config.prefetch) + 1) + 1
        return max(min(cores - 1, 16, room // in_flight), 0)


def choose_engine(
    wanted: str,
    dataset: Dataset,
    device: torch.device,
    views: Sequence[View] = (),
) -> tuple[str, str]:
    """The engine and the reason for it.

    Raises:
        ValueError: no such engine, or one that cannot make the views.
        RuntimeError: the engine asked for is not installed or not built, or needs what the data set does not have.
    """
    if wanted not in ("auto", "fused", "torchvision", "dali"):
        raise ValueError(f"data.engine: expected 'auto', 'fused', 'torchvision' or 'dali', got {wanted!r}")
    if wanted == "torchvision":
        return "torchvision", "asked for"
    policies = sorted({view.policy for view in views} - {""})
    if policies:
        reason = f"policy={', '.join(policies)} needs the torchvision engine"
        if wanted != "auto":
            raise ValueError(f"data.engine: {wanted} cannot be used: {reason}")
        return "torchvision", reason
    from ssl_fast.data import engine_dali

    off_gpu, no_dali = resident.unavailable(dataset, device), engine_dali.unavailable(dataset)
    no_fused = engine_fused.unavailable() if off_gpu else None
    if wanted == "auto":
        return _automatic(device, off_gpu, no_dali, no_fused)
    if obstacle := no_dali if wanted == "dali" else no_fused:
        raise RuntimeError(f"data.engine: {wanted} cannot be used: {obstacle}")
    on_cpu = wanted == "fused" and off_gpu and device.type == "cuda"
    return wanted, f"asked for; not on the GPU: {off_gpu}" if on_cpu else "asked for"


def _automatic(device: torch.device, off_gpu: str | None, no_dali: str | None, no_fused: str | None) -> tuple[str, str]:
    if off_gpu is None:
        return "fused", "the images fit on the GPU, and the CUDA kernels are built"
    if device.type == "cuda" and no_dali is None:
        return "dali", "image files, and a GPU to decode them"
    on_gpu = f"on the GPU they cannot be made: {off_gpu}; dali cannot be used: {no_dali}"
    where = on_gpu if device.type == "cuda" else "the device is a CPU"
    if no_fused is None:
        return "fused", f"{where}, and the C++ kernels are built"
    return "torchvision", f"{where}; fused cannot be used: {no_fused}"
