"""Clips of videos: where they are taken in time, and batches of them.

All frames of a clip are given the same row of the table of parameters, one crop, flip and colour (the temporally
consistent augmentation of Qian et al. 2021, arXiv:2008.03800, section 3.3), by the engines that make views of images.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.dataset import Dataset, Image
from ssl_fast.data.engine_fused import FusedEngine
from ssl_fast.data.engine_torchvision import TorchvisionEngine
from ssl_fast.data.philox import uniforms
from ssl_fast.data.views import View, draw
from ssl_fast.data.workers import BatchMaker, Parts

_PURPOSE = 0xFFFFFE  # the stream of places; views have 0, 1, ..., the order of an epoch 0xFFFFFF
_SHARED = 3  # random numbers of a pair: distance, begin, which is first; then one for each view

Frames = NDArray[np.uint8]  # [T, H, W, C]


@dataclass(frozen=True)
class Clips:
    """Which clips are wanted of N videos.

    Args:
        places: [N, V] in [0, 1]: 0 begins with the video, 1 ends with it.
        frames: V numbers of frames.
        strides: V steps between them.
    """

    places: NDArray[np.float64]  # [N, V]
    frames: tuple[int, ...]
    strides: tuple[int, ...]

    def numbers(self, row: int, length: int) -> list[NDArray[np.int64]]:  # V arrays [T]
        """The frames of each clip of video `row`, which has `length` of them."""
        wanted = zip(self.places[row].tolist(), self.frames, self.strides, strict=True)
        return [frame_numbers(length, place, frames, stride) for place, frames, stride in wanted]


def frame_numbers(length: int, place: float, frames: int, stride: int) -> NDArray[np.int64]:  # [frames]
    """A clip's frames in a video of `length`; a video that is too short begins again, as in the authors' code of CVRL.

    A long one has length - (frames - 1) * stride clips, and `place` chooses among them; a short one may begin anywhere.
    """
    span = (frames - 1) * stride
    num = length - span if length > span else length
    first = min(int(place * num), num - 1)
    return (first + stride * np.arange(frames, dtype=np.int64)) % length


def draw_places(
    views: Sequence[View],  # V
    seed: int,
    epoch: int,
    index: NDArray[np.int64],  # [N] sample numbers
) -> NDArray[np.float64]:  # [N, V] in [0, 1]
    """Where each view of each video is taken: a function of (seed, epoch, sample, view).

    Two views with place="near" lie a distance t of the video apart, of density 2 (1 - t): P(t) = a t + c, falling to 0
    at the largest distance. The earlier one is uniform in what is left, and either view may be it.

    Reference: Qian et al. 2021, arXiv:2008.03800, section 3.2 (decreasing distribution, power 1).
    """
    numbers = uniforms(index, (epoch, _PURPOSE), seed, _SHARED + len(views))
    places = numbers[:, _SHARED:].copy()
    kinds = [view.place for view in views]
    if near := [position for position, kind in enumerate(kinds) if kind == "near"]:
        distance = 1.0 - np.sqrt(1.0 - numbers[:, 0])  # the inverse of the distribution 2 t - t^2
        early = numbers[:, 1] * (1.0 - distance)
        swapped = numbers[:, 2] < 0.5
        places[:, near[0]] = early + distance * swapped
        places[:, near[1]] = early + distance * ~swapped
    even = [position for position, kind in enumerate(kinds) if kind == "even"]
    places[:, even] = np.linspace(0.0, 1.0, len(even)) if len(even) > 1 else 0.5
    return places


def check_clips(views: Sequence[View], dataset: Dataset) -> None:
    """Raises ValueError when the data set has no clips, or places that come in pairs do not."""
    if not dataset.videos and any(view.kind == "clip" for view in views):
        raise ValueError("data: expected videos for views of kind 'clip', got images (data=video_folder reads videos)")
    near = sum(view.place == "near" for view in views)
    if near not in (0, 2):
        raise ValueError(f"place: expected 'near' for two views or none, got it for {near}")


class VideoDataset(Dataset):
    """A split of a data set whose samples are videos.

    Attributes:
        lengths: [N] numbers of frames.
    """

    videos = True
    lengths: NDArray[np.int64]  # [N]

    @abstractmethod
    def frames(
        self,
        i: int,
        numbers: NDArray[np.int64],  # [n] in any order, repeats allowed
    ) -> Frames:  # [n, H, W, C]
        """Frames of video i; UnreadableError where it cannot be read any more."""

    def refuse(self, i: int, reason: str) -> None:
        """Records a video that broke since it was looked at."""

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, i: int) -> Image:
        """The frame in the middle of video i."""
        (frame,) = self.frames(i, self.lengths[i : i + 1] // 2)
        return np.asarray(frame)

    def fetch(  # type: ignore[override]
        self,
        index: NDArray[np.int64],  # [N]
        clips: Clips,
    ) -> tuple[list[list[Frames]], NDArray[np.int64]]:
        """For each video its V clips [T, H, W, C], and the number of the video that was read: itself, or the next one
        that can be, at the same places."""
        pairs = [self._readable(int(i), row, clips) for row, i in enumerate(index)]
        return [found for found, _ in pairs], np.array([i for _, i in pairs], dtype=np.int64)

    def _readable(self, i: int, row: int, clips: Clips) -> tuple[list[Frames], int]:
        for candidate in (*range(i, len(self)), *range(i)):
            numbers = clips.numbers(row, int(self.lengths[candidate]))
            try:
                together = self.frames(candidate, np.concatenate(numbers))
            except UnreadableError as refusal:
                self.refuse(candidate, str(refusal))
                continue
            return np.split(together, np.cumsum(clips.frames)[:-1]), candidate
        raise ValueError("data: no video of this split can be decoded any more")


class ClipMaker(BatchMaker):
    """Turns jobs into batches of clips [N, C, T, S, S], channels_last_3d, and of single frames [N, C, S, S].

    One video at a time is decoded and made into its views: the frames of a whole batch would fill the memory.

    Args:
        dataset: of videos.
        engines: one for each view, which is its only one.
    """

    def __init__(self, dataset: Dataset, engines: Sequence[TorchvisionEngine | FusedEngine]) -> None:
        super().__init__(dataset, engines[0])
        self.engines = engines
        self.views = tuple(engine.views[0] for engine in engines)

    def __getitem__(self, job: Any) -> Parts:
        places = draw_places(self.views, job.seed, job.epoch, job.index)
        frames, strides = tuple(v.frames for v in self.views), tuple(v.stride for v in self.views)
        outs = [self._empty(len(job.index), view) for view in self.views]
        found = np.array(job.index)
        seconds = {"decode": 0.0, "augment": 0.0}
        for row in range(len(job.index)):
            began = time.perf_counter()
            index, dataset = job.index[row : row + 1], cast(VideoDataset, self.dataset)
            (clips,), found[row : row + 1] = dataset.fetch(index, Clips(places[row : row + 1], frames, strides))
            decoded = time.perf_counter()
            table = draw(self.views, job.seed, job.epoch, index, [clips[0].shape[1:3]])
            for position, (engine, clip) in enumerate(zip(self.engines, clips, strict=True)):
                (x,) = engine(clip, table[:, position : position + 1].expand(len(clip), -1, -1))  # [T, C, S, S]
                outs[position][row] = x.transpose(0, 1)
            seconds["decode"] += decoded - began
            seconds["augment"] += time.perf_counter() - decoded
        views = tuple(x if v.kind == "clip" else x[:, :, 0] for x, v in zip(outs, self.views, strict=True))
        labels = self.dataset.labels
        chosen = None if labels is None else torch.from_numpy(labels[found])
        extras = self.dataset.extras(found, job.seed, job.epoch)
        return views, chosen, torch.from_numpy(found), extras, seconds

    def _empty(self, num: int, view: View) -> Tensor:  # [N, C, T, S, S]
        shape = (num, self.dataset.channels, view.frames, view.size, view.size)
        return torch.empty(shape, memory_format=torch.channels_last_3d)
