"""Image files found, each looked at once to see that it can be decoded, the verdicts cached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.cache import cache_folder, load_arrays, save_arrays
from ssl_fast.data.decode import EXTENSIONS, Limits, decode, image_size, read_bytes

_FORMAT = 2  # part of the cache's key: raise it when other files are refused than before


@dataclass
class Scan:
    """What a set of files holds.

    Attributes:
        good: the numbers of the files that can be used, ascending.
        names: their names.
        sizes: [N, 2] (H, W) of each.
        refused: (name, reason) of the others.
        fingerprint: of all names, and of what was given to tell the content.
    """

    good: NDArray[np.int64]  # [N]
    names: list[str]
    sizes: NDArray[np.int64]  # [N, 2]
    refused: list[tuple[str, str]]
    fingerprint: str


def find_files(root: Path, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """The files under `root` with one of the extensions, relative, sorted. Links to folders are not followed."""
    return sorted(_walk(root, "", extensions))


def _walk(root: Path, inside: str, extensions: tuple[str, ...]) -> Iterator[str]:
    with os.scandir(root / inside) as entries:
        for entry in entries:
            name = f"{inside}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, f"{name}/", extensions)
            elif name.lower().endswith(extensions) and not entry.name.startswith("."):
                yield name


def scan(root: Path, limits: Limits, full: bool, threads: int = 0, channels: int = 3) -> Scan:
    """Looks at every image file under `root`: with `channels` other than 1 and 3, at `.npy` files too.

    Args:
        root: the folder.
        limits: of bytes and pixels.
        full: decode every picture; False reads the headers alone (fast, misses damage within the picture).
        threads: 0 for one a core.
        channels: what they are decoded to.

    Raises:
        ValueError: no such folder, no image files, or none that can be decoded.
    """
    if not root.is_dir():
        raise ValueError(f"data.root: no folder {root}")
    extensions = EXTENSIONS if channels in (1, 3) else (*EXTENSIONS, ".npy")
    names = find_files(root, extensions)
    if not names:
        raise ValueError(f"data.root: no images found under {root} (looked for {', '.join(extensions)})")
    return look_at_files(root, names, limits, full, channels, f"data.root: {root}", threads)


def look_at_files(
    root: Path, names: Sequence[str], limits: Limits, full: bool, channels: int, place: str, threads: int = 0
) -> Scan:
    """`look` at files by their names under `root`; sizes and times tell that their content changed."""

    def content(i: int) -> bytes:
        return read_bytes(root / names[i], limits)

    return look(names, stamps_of(root, names), content, limits, full, channels, place, threads)


def stamps_of(root: Path, names: Sequence[str]) -> str:
    """A hash of the sizes and times of files."""
    digest, folder = hashlib.sha256(), os.fspath(root)
    for name in names:
        try:
            status = os.stat(f"{folder}/{name}" if not name.startswith("/") else name)
            digest.update(b"%d %d\0" % (status.st_size, status.st_mtime_ns))
        except OSError:  # a link to nothing
            digest.update(b"\0")
    return digest.hexdigest()


def look(
    names: Sequence[str],
    stamps: str,
    content: Callable[[int], bytes],
    limits: Limits,
    full: bool,
    channels: int,
    place: str,
    threads: int = 0,
) -> Scan:
    """Looks at each of some files; the verdicts are cached under their names, `stamps` and what was looked for.

    Args:
        names: of the files.
        stamps: changes when their content does.
        content: of a file by its number; UnreadableError for one that cannot be read.
        limits, full, channels, threads: as in `scan`.
        place: where they are, for the error.

    Raises:
        ValueError: none of them can be decoded.
    """
    listed = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    fingerprint = hashlib.sha256(f"{listed} {stamps}".encode()).hexdigest()
    identity = f"{_FORMAT} {fingerprint} {limits} {full} {channels} {place}"
    key = hashlib.sha256(identity.encode(errors="replace")).hexdigest()[:24]
    path = cache_folder() / f"scan-{key}.npz"
    cached = load_arrays(path)
    if cached is None:
        cached = _look_at_all(len(names), content, limits, full, channels, threads)
        save_arrays(path, cached)
    sizes, bad = cached["sizes"].astype(np.int64), cached["bad"].astype(np.int64)
    refused = [(names[i], reason) for i, reason in zip(bad.tolist(), cached["reasons"].tolist(), strict=True)]
    if len(refused) == len(names):
        raise ValueError(f"{place}: none of the {len(names)} files can be decoded ({refused[0][1]})")
    good = np.delete(np.arange(len(names)), bad)
    kept = [names[i] for i in good.tolist()] if refused else list(names)
    return Scan(good, kept, sizes[good], refused, fingerprint)


def _look_at_all(
    num: int, content: Callable[[int], bytes], limits: Limits, full: bool, channels: int, threads: int
) -> dict[str, NDArray[np.generic]]:
    """sizes [num, 2], the numbers of the bad files, and their reasons."""

    def one(i: int) -> tuple[tuple[int, ...], str]:
        try:
            data = content(i)
            size = image_size(data, limits, channels)
            return (decode(data, channels, limits).shape[:2] if full else size), ""
        except UnreadableError as refusal:
            return (0, 0), str(refusal)

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        verdicts = list(pool.map(one, range(num)))
    bad = [i for i, (_, reason) in enumerate(verdicts) if reason]
    return {
        "sizes": np.array([size for size, _ in verdicts], dtype=np.int32).reshape(-1, 2),
        "bad": np.array(bad, dtype=np.int64),
        "reasons": np.array([verdicts[i][1] for i in bad], dtype=np.str_),
    }
