"""Views by NVIDIA DALI: it decodes, crops, resizes and flips; the colours follow in the arithmetic of every engine.

The table goes into the graph as per-sample inputs. DALI's own colour operators are left out: its hue turns in YIQ, not
in HSV, and its order of operations is fixed, so the same table would give another view.

One undecodable file kills a DALI pipeline, so the folder is scanned beforehand; files of kinds that DALI reads
differently (16 bits, palettes, CMYK, GIF) are decoded by us and handed over as bitmaps, and so is the whole batch in
which a file broke after the scan.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.bands import NPY_MAGIC
from ssl_fast.data.dataset import Dataset, Image
from ssl_fast.data.engine_fused import refuse_policy
from ssl_fast.data.engine_torchvision import check_channels, finish
from ssl_fast.data.views import COLUMN, Batch, View, draw
from ssl_fast.data.workers import Job

_log = logging.getLogger(__name__)
_DEPTH = 2  # batches in the making beside the one that is used
_PLAIN = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L")}  # what DALI reads as Pillow does


def unavailable(dataset: Dataset) -> str | None:
    """Why DALI cannot serve this data set here; None when it can."""
    if not hasattr(dataset, "encoded"):
        return "the data set is not a folder of image files"
    if dataset.channels not in (1, 3):
        return f"it decodes 1 or 3 channels, the images have {dataset.channels}"
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "it is not installed (pip install ssl_fast[dali])"
    return None


class DaliSource:
    """Makes the batches of jobs, a few ahead.

    Args:
        dataset: an image folder: `encoded(i)`, `sizes`.
        views: the views to make.
        batch_size: the most samples of a job.
        device: a CUDA device decodes in hardware ("mixed"); a CPU needs neither GPU nor driver.
    """

    def __init__(self, dataset: Any, views: Sequence[View], batch_size: int, device: torch.device) -> None:
        self.dataset, self.views, self.batch_size, self.device = dataset, tuple(views), batch_size, device
        for view in self.views:
            check_channels(view, dataset.channels)
            refuse_policy(view, "dali")
        self._plain: dict[int, bool] = {}
        self._waiting: deque[Job] = deque()
        self._running: deque[tuple[Job, Tensor, NDArray[np.int64]]] = deque()  # job, table, samples really read
        self._by_pillow: Job | None = None  # the job that DALI failed on
        self._pipeline = self._build()

    def __call__(self, jobs: list[Job]) -> Iterator[Batch]:
        """The batches of `jobs` in order; what an earlier, unfinished call had begun is dropped."""
        self._drain()
        self._waiting.extend(jobs)
        self._pipeline.reset()
        self._pipeline.schedule_run()  # fills the queue
        for _ in jobs:
            outputs = self._outputs()
            job, table, index = self._running.popleft()
            batch = self._batch(outputs, table, index)
            batch.extras |= self.dataset.extras(index, job.seed, job.epoch)
            self._pipeline.release_outputs()
            self._pipeline.schedule_run()
            yield batch

    def _drain(self) -> None:
        self._waiting.clear()
        while self._running:
            self._outputs()
            self._running.popleft()
            self._pipeline.release_outputs()
            self._pipeline.schedule_run()

    def _next_inputs(self) -> list[Any]:
        """What the graph reads for the next job: the files' contents; corner, extent and flip of each view."""
        if not self._waiting:
            raise StopIteration
        job = self._waiting.popleft()
        if job is self._by_pillow:
            images, found = self.dataset.fetch(job.index)
            sizes, contents = np.array([image.shape[:2] for image in images]), [_bitmap(image) for image in images]
        else:
            sizes, found = self.dataset.sizes[job.index], job.index
            contents = [self._content(int(i)) for i in job.index]
        table = draw(self.views, job.seed, job.epoch, job.index, sizes)
        self._running.append((job, table, found))
        numbers = table.numpy().astype(np.int32)
        parts = [(numbers[:, v, :2], numbers[:, v, 2:4], numbers[:, v, COLUMN["flip"]]) for v in range(len(self.views))]
        return [contents, *(list(np.ascontiguousarray(part)) for view in parts for part in view)]

    def _outputs(self) -> Any:
        """The first running job's outputs; when DALI failed on it, a new pipeline makes it from bitmaps."""
        try:
            return self._pipeline.share_outputs()
        except RuntimeError as error:
            _log.warning("DALI failed on a batch, which is decoded again by Pillow: %s", str(error).splitlines()[0])
        self._waiting.extendleft(job for job, _, _ in reversed(self._running))
        self._running.clear()
        self._by_pillow = self._waiting[0]
        self._pipeline = self._build()
        self._pipeline.schedule_run()
        return self._pipeline.share_outputs()

    def _batch(
        self,
        outputs: Any,  # V TensorLists
        table: Tensor,  # [N, V, P]
        index: NDArray[np.int64],  # [N]
    ) -> Batch:
        views = tuple(self._view(outputs[v], table[:, v], view) for v, view in enumerate(self.views))
        if self.device.type == "cuda":  # DALI's memory is about to be used again
            torch.cuda.current_stream(self.device).synchronize()
        labels = self.dataset.labels
        chosen = None if labels is None else torch.from_numpy(labels[index])
        return Batch(views, chosen, torch.from_numpy(np.array(index)))

    def _content(self, i: int) -> NDArray[np.uint8]:  # [bytes]
        try:
            content = self.dataset.encoded(i)
            if i not in self._plain:
                self._plain[i] = _is_plain(content)
            if self._plain[i]:
                return np.frombuffer(content, dtype=np.uint8)
            return _bitmap(self.dataset.read(i))
        except ValueError:  # the file broke: DALI refuses an empty one, and the batch is made again
            return np.zeros(1, dtype=np.uint8)

    def _view(
        self,
        output: Any,  # TensorList of N uint8 [S, S, C]
        rows: Tensor,  # [N, P]
        view: View,
    ) -> Tensor:  # [N, C, S, S]
        shape = (len(rows), view.size, view.size, self.dataset.channels)
        pixels = torch.empty(shape, dtype=torch.uint8, device=self.device)
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        _dali(".plugin.pytorch").feed_ndarray(output.as_tensor(), pixels, cuda_stream=stream)
        x = pixels.permute(0, 3, 1, 2).float().contiguous()
        result = torch.empty_like(x, memory_format=torch.channels_last)
        finish(x, rows, view, out=result)
        return result

    def _build(self) -> Any:
        gpu = self.device.type == "cuda"
        pipeline = _dali().Pipeline(
            batch_size=self.batch_size,
            num_threads=max(1, len(os.sched_getaffinity(0)) - 1),
            device_id=(self.device.index or 0) if gpu else None,
            prefetch_queue_depth=_DEPTH,
        )
        with pipeline:
            inputs = _inputs(weakref.WeakMethod(self._next_inputs), len(self.views))
            pipeline.set_outputs(*_graph(inputs, self.views, self.dataset.channels, gpu))
        pipeline.build()
        return pipeline


def _dali(part: str = "") -> Any:
    """nvidia.dali, or a part of it: untyped here, and imported when it is used."""
    return importlib.import_module(f"nvidia.dali{part}")


def _inputs(source: Callable[[], Any], num_views: int) -> Any:
    """The external inputs; `source` is weak, so that pipeline and source hold each other in no circle."""
    fn, types = _dali(".fn"), _dali(".types")
    dtypes = [types.UINT8] + [types.INT32] * (3 * num_views)
    return fn.external_source(lambda: source()(), num_outputs=len(dtypes), dtype=dtypes)


def _graph(inputs: Sequence[Any], views: Sequence[View], channels: int, gpu: bool) -> list[Any]:
    """The DALI nodes from the inputs of `_next_inputs` to uint8 [S, S, C] for each view."""
    fn, types = _dali(".fn"), _dali(".types")
    kind = types.RGB if channels == 3 else types.GRAY
    images = fn.decoders.image(inputs[0], device="mixed" if gpu else "cpu", output_type=kind)
    filters = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
    outputs = []
    for v, view in enumerate(views):
        corner, extent, flip = inputs[1 + 3 * v : 4 + 3 * v]
        crop = fn.slice(images, start=corner, shape=extent, axes=(0, 1))
        crop = fn.resize(crop, size=(view.size, view.size), interp_type=filters[view.interpolation], antialias=True)
        outputs.append(fn.flip(crop, horizontal=flip, vertical=0))
    return outputs


def _is_plain(content: bytes) -> bool:
    from PIL import Image as Pillow

    if content.startswith(NPY_MAGIC):
        return False
    with Pillow.open(io.BytesIO(content)) as image:
        return (image.format, image.mode) in _PLAIN and "transparency" not in image.info


def _bitmap(
    image: Image,  # [H, W, C]
) -> NDArray[np.uint8]:  # [bytes]
    """The image as a PPM or PGM file: a header and the pixels."""
    height, width, channels = image.shape
    header = f"P{6 if channels == 3 else 5}\n{width} {height}\n255\n".encode()
    return np.frombuffer(header + np.ascontiguousarray(image).tobytes(), dtype=np.uint8)
