"""Videos found, each looked at once to see that it can be decoded, the verdicts cached.

A video is a video file, or a folder that holds its frames as images (and no video file).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data import decode, video
from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.cache import cache_folder, load_arrays, save_arrays
from ssl_fast.data.decode import Limits
from ssl_fast.data.scan import find_files, stamps_of
from ssl_fast.data.video import Track

_FORMAT = 1  # part of the cache's key: raise it when other videos are refused than before
_FRAMES = tuple(extension for extension in decode.EXTENSIONS if extension not in video.EXTENSIONS)


class Tracks:
    """The tracks of many videos, packed into a few arrays.

    Args:
        arrays: as `pack` made them.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.arrays = arrays
        self._ends = {name: np.cumsum(arrays[f"num_{name}"]) for name in ("times", "keys")}

    @classmethod
    def pack(cls, tracks: Sequence[Track]) -> Tracks:
        """Of a list."""
        rows = [(t.length, *t.size, t.turn, t.first, len(t.times), len(t.keys)) for t in tracks]
        names = ("length", "height", "width", "turn", "first", "num_times", "num_keys")
        columns = dict(zip(names, np.array(rows, np.int64).reshape(-1, len(names)).T, strict=True))
        empty = [np.zeros(0, np.int64)]
        return cls(
            {
                **columns,
                "step": np.array([t.step for t in tracks], np.float64),
                "times": np.concatenate(empty + [t.times for t in tracks]),
                "keys": np.concatenate(empty + [t.keys for t in tracks]),
            }
        )

    def __getitem__(self, i: int) -> Track:
        a = self.arrays
        size = (int(a["height"][i]), int(a["width"][i]))
        times, keys = self._part("times", i), self._part("keys", i)
        return Track(int(a["length"][i]), size, int(a["turn"][i]), int(a["first"][i]), float(a["step"][i]), times, keys)

    def _part(self, name: str, i: int) -> NDArray[np.int64]:
        end = int(self._ends[name][i])
        part: NDArray[np.int64] = self.arrays[name][end - int(self.arrays[f"num_{name}"][i]) : end]
        return part


@dataclass
class VideoScan:
    """What a folder of videos holds.

    Attributes:
        names: of the videos that can be used, files or folders.
        tracks: what is known of each.
        refused: (name, reason) of the others.
        fingerprint: of the names, sizes and times of all files.
    """

    names: list[str]
    tracks: Tracks
    refused: list[tuple[str, str]]
    fingerprint: str


def scan_videos(root: Path, limits: Limits, full: bool, threads: int = 0) -> VideoScan:
    """Looks at every video under `root`.

    Args:
        root: the folder; images directly inside it are not looked at.
        limits: of bytes (of a frame's image file) and pixels (of a frame).
        full: decode every frame; False reads the packets and decodes the first.
        threads: 0 for one a core.

    Raises:
        ValueError: no such folder, no videos, or none that can be decoded.
        ImportError: there are video files, and PyAV is not installed.
    """
    if not root.is_dir():
        raise ValueError(f"data.root: no folder {root}")
    files = find_files(root, (*video.EXTENSIONS, *_FRAMES))
    names = _videos(files)
    if not names:
        looked = ", ".join(video.EXTENSIONS)
        raise ValueError(f"data.root: no videos found under {root} (looked for {looked}, and folders of images)")
    listed = hashlib.sha256("\0".join(files).encode("utf-8", "surrogateescape")).hexdigest()
    fingerprint = hashlib.sha256(f"{listed} {stamps_of(root, files)}".encode()).hexdigest()
    if any(name.lower().endswith(video.EXTENSIONS) for name in names):
        video.available()
    identity = f"{_FORMAT} {fingerprint} {limits} {full} {root}"
    path = cache_folder() / f"videos-{hashlib.sha256(identity.encode(errors='replace')).hexdigest()[:24]}.npz"
    arrays: dict[str, NDArray[Any]] | None = load_arrays(path)
    if arrays is None:
        arrays = _look_at_all(root, names, limits, full, threads)
        save_arrays(path, arrays)
    bad, reasons = arrays.pop("bad").tolist(), arrays.pop("reasons").tolist()
    refused = [(names[i], reason) for i, reason in zip(bad, reasons, strict=True)]
    if len(refused) == len(names):
        raise ValueError(f"data.root: {root}: none of the {len(names)} videos can be decoded ({refused[0][1]})")
    unusable = set(bad)
    good = [name for i, name in enumerate(names) if i not in unusable]
    return VideoScan(good, Tracks(arrays), refused, fingerprint)


def _videos(files: Iterable[str]) -> list[str]:
    """Video files, and folders of images that hold none."""
    found = [name for name in files if name.lower().endswith(video.EXTENSIONS)]
    with_files = {name.rpartition("/")[0] for name in found}
    folders = {name.rpartition("/")[0] for name in files if not name.lower().endswith(video.EXTENSIONS)}
    return sorted([*found, *(folders - with_files - {""})])


def _look_at_all(
    root: Path, names: Sequence[str], limits: Limits, full: bool, threads: int
) -> dict[str, NDArray[np.generic]]:
    """The packed tracks of the good ones, the numbers of the bad ones, and their reasons."""

    def one(name: str) -> Track | str:
        path = root / name
        try:
            if path.is_dir():
                return _look_at_folder(path, limits, full)
            return video.look_at(path, full, limits.max_pixels)
        except UnreadableError as refusal:
            return str(refusal)

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        verdicts = list(pool.map(one, names))
    bad = [i for i, verdict in enumerate(verdicts) if isinstance(verdict, str)]
    packed = Tracks.pack([verdict for verdict in verdicts if isinstance(verdict, Track)]).arrays
    return {**packed, "bad": np.array(bad, np.int64), "reasons": np.array([verdicts[i] for i in bad], np.str_)}


def frame_files(folder: Path) -> list[str]:
    """The images of a folder in their order: by name, numbers by value (2 before 10)."""
    try:
        with os.scandir(folder) as entries:
            found = [e.name for e in entries if e.name.lower().endswith(_FRAMES) and not e.name.startswith(".")]
    except OSError as error:
        raise UnreadableError(f"{type(error).__name__}: {error.strerror}") from error
    return sorted(found, key=_by_value)


def _by_value(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _look_at_folder(folder: Path, limits: Limits, full: bool) -> Track:
    files = frame_files(folder)
    size = decode.image_size(decode.read_bytes(folder / files[0], limits), limits)
    if full:
        read_images(folder, files, np.arange(len(files)), size, 3, limits)
    return Track(len(files), size)


def read_images(
    folder: Path,
    files: Sequence[str],
    numbers: NDArray[np.int64],  # [n] in any order, repeats allowed
    size: tuple[int, int],
    channels: int,
    limits: Limits,
) -> NDArray[np.uint8]:  # [n, H, W, channels]
    """Frames of a video that is a folder of images.

    Raises:
        UnreadableError: a frame is damaged, missing or of another size than (H, W) `size`.
    """
    wanted, places = np.unique(numbers, return_inverse=True)
    if wanted[-1] >= len(files):
        raise UnreadableError(f"{len(files)} frames, expected {wanted[-1] + 1} or more")
    frames = np.empty((len(wanted), *size, channels), np.uint8)
    for row, number in enumerate(wanted.tolist()):
        try:
            pixels = decode.decode(decode.read_bytes(folder / files[number], limits), channels, limits)
        except UnreadableError as refusal:
            raise UnreadableError(f"{files[number]}: {refusal}") from refusal
        if pixels.shape[:2] != size:
            got = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise UnreadableError(f"{files[number]}: {got} pixels, expected {size[1]} x {size[0]}")
        frames[row] = pixels
    return frames[places]
