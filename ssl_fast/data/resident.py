"""Batches of a data set that lives on the GPU: no worker, no copy of pixels, views made where they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_fast.data import engine_fused_gpu
from ssl_fast.data.dataset import Dataset
from ssl_fast.data.engine_fused_gpu import FusedGpuEngine
from ssl_fast.data.views import Batch, View, draw
from ssl_fast.data.workers import Job, ahead

_SHARE = 0.25  # of the GPU's free memory that images may take: the rest is the training's
_AT_A_TIME = 4096  # images that are copied together


def unavailable(dataset: Dataset, device: torch.device) -> str | None:
    """Why the data set cannot live on `device`; None when it can."""
    if device.type != "cuda":
        return "the device is a CPU"
    if dataset.arrays is None:
        return "the images are not in memory, all of one size"
    if reason := engine_fused_gpu.unavailable():
        return reason
    free, _ = torch.cuda.mem_get_info(device)
    if dataset.arrays.nbytes > _SHARE * free:
        return f"the images take {dataset.arrays.nbytes / 1e9:.1f} GB and {free / 1e9:.1f} GB of the GPU are free"
    return None


class ResidentSource:
    """Makes the batches of jobs when they are asked for; a thread draws their parameters, a few ahead.

    Args:
        dataset: its `arrays` are copied to the GPU once.
        views: the views to make.
        device: the GPU.
        prefetch: batches whose parameters are drawn ahead.
    """

    def __init__(self, dataset: Dataset, views: Sequence[View], device: torch.device, prefetch: int) -> None:
        assert dataset.arrays is not None
        self._engine = FusedGpuEngine(views, dataset.channels, device)
        self._images = torch.empty(dataset.arrays.shape, dtype=torch.uint8, device=device)
        for begin in range(0, len(dataset), _AT_A_TIME):
            part = slice(begin, begin + _AT_A_TIME)
            self._images[part] = torch.from_numpy(np.array(dataset.arrays[part]))
        self._dataset = dataset
        self._labels = None if dataset.labels is None else torch.from_numpy(np.array(dataset.labels))
        self._parameters = ahead(self._drawn, prefetch)

    def __call__(self, jobs: list[Job]) -> Iterator[Batch]:
        """The batches of `jobs` in order."""
        for job, (table, extras) in zip(jobs, self._parameters(jobs), strict=True):
            index = torch.from_numpy(np.array(job.index))
            labels = None if self._labels is None else self._labels[index]
            yield Batch(self._engine(self._images, table, job.index), labels, index, extras)

    def _drawn(self, job: Job) -> tuple[Tensor, dict[str, Tensor]]:  # [N, V, P], extras
        sizes = np.tile(self._images.shape[1:3], (len(job.index), 1))
        table = draw(self._engine.views, job.seed, job.epoch, job.index, sizes)
        return table, self._dataset.extras(job.index, job.seed, job.epoch)
