"""The decoded cache: every image of a split once, as raw uint8 in one memory-mapped file."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.cache import cache_folder, load_arrays, save_arrays

_log = logging.getLogger(__name__)
_FORMAT = 1  # part of the key: raise it when decoding changes
_AT_A_TIME = 256  # images decoded before they are written
_ROOM = 1.05  # disk space wanted, as a multiple of the pixels'

Decode = Callable[[int], NDArray[np.uint8]]


class DecodedCache:
    """Decoded images in `pixels`, the place of each in `index.npz`, which is written last: with it, all is there.

    The index is checked by its hash, the pixels by their number alone.
    """

    def __init__(self, pixels: Path, index: dict[str, NDArray[Any]]) -> None:
        self._path, self._index = pixels, index
        self._pixels: NDArray[np.uint8] | None = None

    @classmethod
    def open_or_make(cls, identity: str, decode: Decode, sizes: NDArray[np.int64], channels: int) -> DecodedCache:
        """The cache of `identity`, made now where it is absent or damaged; of several processes one makes it.

        Args:
            identity: stands for the files' content and how it is decoded.
            decode: the image of a number; UnreadableError for one that cannot be.
            sizes: [N, 2] (H, W) of the images.
            channels: C of the images.

        Raises:
            ValueError: the disk has no room for it.
        """
        key = hashlib.sha256(f"{_FORMAT} {identity}".encode(errors="replace")).hexdigest()[:24]
        folder, reason = cache_folder() / f"decoded-{key}", "the index cannot be written"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, or its process dies
                found = cls._open(folder)
                if found is None:
                    _check_room(folder, int(sizes.prod(axis=1).sum()) * channels)
                    _make(folder, decode, len(sizes), channels)
                    found = cls._open(folder)
        except OSError as error:
            (folder / "pixels").unlink(missing_ok=True)
            found, reason = None, str(error)
        if found is None:
            raise ValueError(
                f"data.decoded_cache: {folder}: {reason}; set SSL_FAST_CACHE to another disk, or switch it off"
            )
        return found

    @classmethod
    def _open(cls, folder: Path) -> DecodedCache | None:
        index, pixels = load_arrays(folder / "index.npz"), folder / "pixels"
        if index is None or not pixels.is_file() or pixels.stat().st_size != int(index["end"]):
            return None
        return cls(pixels, index)

    def read(self, i: int) -> NDArray[np.uint8]:  # [H, W, C]
        """Image i, over the file's memory (writing to it changes nothing on disk)."""
        begin, (height, width, channels) = int(self._index["begin"][i]), self._index["shape"][i].tolist()
        if height == 0:
            raise UnreadableError("it could not be decoded when the cache was made")
        if self._pixels is None:
            self._pixels = np.memmap(self._path, np.uint8, mode="c")
        return self._pixels[begin : begin + height * width * channels].reshape(height, width, channels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # a map is opened by each process that reads


def _check_room(folder: Path, pixels: int) -> None:
    free, wanted = shutil.disk_usage(folder).free, int(pixels * _ROOM)
    if wanted > free:
        raise ValueError(
            f"data.decoded_cache: needs {wanted / 1e9:.1f} GB in {folder.parent}, {free / 1e9:.1f} GB are free: set "
            "SSL_FAST_CACHE to a folder on another disk, or data.decoded_cache=false"
        )


def _make(folder: Path, decode: Decode, num: int, channels: int) -> None:
    _log.warning("decoding %d images into %s", num, folder)
    (folder / "index.npz").unlink(missing_ok=True)
    shape, begin, end = np.zeros((num, 3), np.int64), np.zeros(num, np.int64), 0

    def image(i: int) -> NDArray[np.uint8]:
        try:
            return decode(i)
        except UnreadableError:  # the reader meets it again, and records it
            return np.zeros((0, 0, channels), np.uint8)

    with open(folder / "pixels", "wb") as file, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for first in range(0, num, _AT_A_TIME):
            for i, pixels in enumerate(pool.map(image, range(first, min(first + _AT_A_TIME, num))), first):
                shape[i], begin[i], end = pixels.shape, end, end + pixels.size
                file.write(np.ascontiguousarray(pixels).data)
        file.flush()
        os.fsync(file.fileno())
    save_arrays(folder / "index.npz", {"shape": shape, "begin": begin, "end": np.array(end)})
