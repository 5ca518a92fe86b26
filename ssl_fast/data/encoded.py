"""Data sets of encoded images: what folders, tables, shards and Hugging Face data sets have in common.

A file that cannot be decoded is found when the set is first opened (verdicts are cached), left out, and recorded in the
quarantine file. One that breaks later, or that a look at headers let through, is replaced by the next readable sample
of the split, which is a function of the files alone, so the order of an epoch stays one too.
"""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.cache import cache_folder
from ssl_fast.data.dataset import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD, Dataset, Image
from ssl_fast.data.decode import Limits, decode, read_bytes
from ssl_fast.data.decoded import DecodedCache
from ssl_fast.data.parts import PartsConfig
from ssl_fast.data.quarantine import Quarantine

_log = logging.getLogger(__name__)


@dataclass
class EncodedConfig(PartsConfig):
    """How encoded images are read; and divided: `PartsConfig`.

    Args:
        color: three channels; False makes one.
        channels: so many channels instead, those of the files: `.npy` arrays [H, W, C], TIFF files of many bands, RGBA;
            0 for what `color` says.
        white: the value of 16-bit and floating-point pixels that becomes 255; 0 for the most that a file's depth holds.
        max_pixels, max_bytes: larger files are refused.
        quarantine: file that refused files are recorded in; "" for one in the cache folder.
        decoded_cache: decode each image once into a memory-mapped file in the cache folder, and read that.
        scaled_decode: decode JPEGs at 1/2, 1/4 or 1/8 of their size where every drawn crop allows it: much faster for
            large photographs, and other pixels than without (docs/data.md says by how much).
    """

    color: bool = True
    channels: int = 0
    white: float = 0.0
    max_pixels: int = 64_000_000
    max_bytes: int = 64 << 20
    quarantine: str = ""
    decoded_cache: bool = False
    scaled_decode: bool = False


class EncodedDataset(Dataset):
    """Images that are decoded when they are read.

    Attributes:
        sizes: [N, 2] (H, W) of each image.
        quarantine: where bad files are recorded.
    """

    names: list[str]
    sizes: NDArray[np.int64]  # [N, 2]

    def _prepare(self, config: Any, place: Path | str) -> None:
        """What does not depend on the files. `place` names the quarantine file of this set."""
        if config.channels < 0:
            raise ValueError(
                f"data.channels: expected 0 (as data.color says) or a positive number, got {config.channels}"
            )
        if config.decoded_cache and config.scaled_decode:
            raise ValueError("data.scaled_decode: expected false with data.decoded_cache=true, which decodes only once")
        self.channels = config.channels or (3 if config.color else 1)
        self.limits = Limits(config.max_bytes, config.max_pixels, config.white)
        self.scaled_decode = config.scaled_decode
        grey = ((GREY_MEAN,), (GREY_STD,)) if self.channels == 1 else ((0.5,) * self.channels, (0.25,) * self.channels)
        self.mean, self.std = (IMAGENET_MEAN, IMAGENET_STD) if self.channels == 3 else grey
        name = hashlib.sha256(str(Path(place).resolve()).encode(errors="replace")).hexdigest()[:16]
        self.quarantine = Quarantine(Path(config.quarantine or cache_folder() / name / "quarantine.jsonl"))
        self._decoded: DecodedCache | None = None

    def _record(self, refused: Sequence[tuple[str, str]], total: int) -> None:
        if self.quarantine.add(refused):
            where = self.quarantine.path
            _log.warning("%d of %d image files cannot be used and are left out: %s", len(refused), total, where)

    def _finish(self, config: Any, identity: str) -> None:
        """Fingerprint and decoded cache, once names, sizes and labels are there; `identity` stands for the content."""
        settings = f"{self.channels} {self.limits.white} {config.scaled_decode}"
        self._digest = hashlib.sha256(f"{identity} {self.names} {settings}".encode(errors="replace")).hexdigest()
        if config.decoded_cache:
            self._decoded = DecodedCache.open_or_make(
                f"{self._digest} {self.limits}", self._decode, self.sizes, self.channels
            )

    @abstractmethod
    def encoded(self, i: int) -> bytes:
        """The content of file i.

        Raises:
            UnreadableError: it cannot be read, or is larger than the limit.
        """

    @property
    def faster_decoding(self) -> tuple[str, ...]:
        """The settings that would make decoding cheaper and are off."""
        if self._decoded is not None:
            return ()
        return ("decoded_cache",) if self.scaled_decode else ("decoded_cache", "scaled_decode")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> Image:
        """Image i; UnreadableError when the file broke since it was looked at."""
        return self._decode(i) if self._decoded is None else self._decoded.read(i)

    def fetch(
        self,
        index: NDArray[np.int64],  # [N]
        shrink: NDArray[np.int64] | None = None,  # [N] 1, 2, 4 or 8: JPEGs may be decoded so much smaller
    ) -> tuple[list[Image], NDArray[np.int64]]:
        """The images, each with the number of the sample that was read: itself, or the next one that can be."""
        shrinks = np.ones(len(index), np.int64) if shrink is None else shrink
        pairs = [self._readable(int(i), int(by)) for i, by in zip(index, shrinks, strict=True)]
        return [image for image, _ in pairs], np.array([i for _, i in pairs], dtype=np.int64)

    def fingerprint(self) -> str:
        """Of the names, sizes and times of the files, and of how they are read."""
        return self._digest

    def _decode(self, i: int, shrink: int = 1) -> Image:
        return decode(self.encoded(i), self.channels, self.limits, shrink)

    def _readable(self, i: int, shrink: int) -> tuple[Image, int]:
        for candidate in (*range(i, len(self)), *range(i)):
            by = shrink if candidate == i else 1  # `shrink` is a function of image i
            try:
                return (self.read(candidate) if by == 1 else self._decode(candidate, by)), candidate
            except UnreadableError as refusal:
                self.quarantine.add([(self.names[candidate], str(refusal))])
        raise ValueError("data: no image of this split can be decoded any more")


class FileDataset(EncodedDataset):
    """A data set whose `names` are files under `root`."""

    root: Path

    def encoded(self, i: int) -> bytes:
        """The file's content."""
        return read_bytes(self.root / self.names[i], self.limits)
