"""A folder of videos: files, or folders of frames; class folders or none, split folders or one pool."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.cache import cache_folder
from ssl_fast.data.clips import Frames, VideoDataset
from ssl_fast.data.dataset import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD
from ssl_fast.data.decode import Limits
from ssl_fast.data.parts import PARTS, PartsConfig, chosen_rows, folder_classes, part_rows, splits_of
from ssl_fast.data.quarantine import Quarantine
from ssl_fast.data.scan_videos import frame_files, read_images, scan_videos
from ssl_fast.data.video import EXTENSIONS, read_frames

_log = logging.getLogger(__name__)


class VideoFolder(VideoDataset):
    """The videos under `root`, sorted by name: video files (PyAV decodes them), and folders that hold frames as images.

    Splits and classes are those of `image_folder`: `root/train` makes `root/{train,val,test}` the splits, otherwise all
    videos are one pool that is divided; classes are the folders directly inside, when there are two or more and no
    video lies beside them. A video that cannot be decoded is left out and recorded; one that breaks later is replaced
    by the next that can be.

    Attributes:
        names: of the videos.
        quarantine: where bad ones are recorded.
    """

    names: list[str]

    @dataclass
    class Config(PartsConfig):
        """Where the videos are, how they are read, and how they are divided: `PartsConfig`.

        Args:
            root: the folder.
            labelled: class folders are classes; False ignores them.
            scan: "header" reads every file's packets and decodes one frame, the first time; "full" decodes all.
            color: three channels; False makes one.
            max_pixels: videos of larger frames are refused.
            max_bytes: larger image files of frames are refused; video files may have any size.
            quarantine: file that refused videos are recorded in; "" for one in the cache folder.
        """

        name: str = "video_folder"
        root: str = ""
        labelled: bool = True
        scan: str = "header"
        test_fraction: float = 0.1
        color: bool = True
        max_pixels: int = 64_000_000
        max_bytes: int = 64 << 20
        quarantine: str = ""

    def __init__(self, config: Any, split: str) -> None:
        if config.scan not in ("full", "header"):
            raise ValueError(f"data.scan: expected 'full' or 'header', got {config.scan!r}")
        self.root = _root(config)
        self.channels = 3 if config.color else 1
        self.mean, self.std = (IMAGENET_MEAN, IMAGENET_STD) if config.color else ((GREY_MEAN,), (GREY_STD,))
        self._limits = Limits(config.max_bytes, config.max_pixels)
        place = hashlib.sha256(str(self.root.resolve()).encode(errors="replace")).hexdigest()[:16]
        self.quarantine = Quarantine(Path(config.quarantine or cache_folder() / place / "quarantine.jsonl"))
        found = scan_videos(self.root, self._limits, config.scan == "full")
        if self.quarantine.add(found.refused):
            total = len(found.names) + len(found.refused)
            where = self.quarantine.path
            _log.warning("%d of %d videos cannot be used and are left out: %s", len(found.refused), total, where)
        parts = part_rows(found.names)
        labels, self.classes = folder_classes(found.names, parts) if config.labelled else (None, [])
        rows = chosen_rows(config, split, parts, labels, len(found.names))
        if not len(rows):
            raise ValueError(f"data.root: no videos in the split {split!r} of {config.root}")
        self.labels = None if labels is None else labels[rows]
        self.names = [found.names[i] for i in rows]
        if self.labels is not None and self.labels.min() < 0:
            stranger = self.names[int(self.labels.argmin())].split("/")[1]
            raise ValueError(f"data.root: class folder {stranger!r} is not among those of the training videos")
        self._rows, self._tracks = rows, found.tracks
        self.lengths = found.tracks.arrays["length"][rows]
        identity = f"{found.fingerprint} {self.names} {self.channels}"
        self._digest = hashlib.sha256(identity.encode(errors="replace")).hexdigest()

    @staticmethod
    def splits(config: Any) -> tuple[str, ...]:
        """The splits of the folder with this config."""
        return splits_of(config, [name for name in PARTS if (_root(config) / name).is_dir()])

    def frames(
        self,
        i: int,
        numbers: NDArray[np.int64],  # [n] in any order, repeats allowed
    ) -> Frames:  # [n, H, W, C]
        """Frames of video i.

        Raises:
            UnreadableError: it broke since it was looked at, or the look at its packets let damage through.
        """
        path, track = self.root / self.names[i], self._tracks[int(self._rows[i])]
        if self.names[i].lower().endswith(EXTENSIONS):
            return read_frames(path, track, numbers, self.channels)
        return read_images(path, frame_files(path), numbers, track.size, self.channels, self._limits)

    def refuse(self, i: int, reason: str) -> None:
        """Records video i in the quarantine file."""
        self.quarantine.add([(self.names[i], reason)])

    def fingerprint(self) -> str:
        """Of the names, sizes and times of all files, and of how they are read."""
        return self._digest


def _root(config: Any) -> Path:
    if not config.root:
        raise ValueError("data.root: expected a folder of videos")
    return Path(config.root)
