"""A folder's image files: found, each decoded once to see that it can be, the verdicts cached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.cache import cache_folder, load_arrays, save_arrays
from ssl_fast.data.decode import EXTENSIONS, Limits, decode, image_size, read_bytes

_FORMAT = 1  # part of the cache's key: raise it when other files are refused than before


@dataclass
class Scan:
    """What a folder holds.

    Attributes:
        names: the good files, relative to the root, sorted.
        sizes: [N, 2] (H, W) of each.
        refused: (name, reason) of the others.
        fingerprint: of all names, sizes and times.
    """

    names: list[str]
    sizes: NDArray[np.int64]  # [N, 2]
    refused: list[tuple[str, str]]
    fingerprint: str


def find_files(root: Path) -> list[str]:
    """The files under `root` with an image's extension, relative, sorted. Links to folders are not followed."""
    return sorted(_walk(root, ""))


def _walk(root: Path, inside: str) -> Iterator[str]:
    with os.scandir(root / inside) as entries:
        for entry in entries:
            name = f"{inside}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, f"{name}/")
            elif name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."):
                yield name


def scan(root: Path, limits: Limits, full: bool, threads: int = 0) -> Scan:
    """Looks at every image file under `root`.

    Args:
        root: the folder.
        limits: of bytes and pixels.
        full: decode every picture; False reads the headers alone (fast, misses damage within the picture).
        threads: 0 for one a core.

    Raises:
        ValueError: no such folder, no image files, or none that can be decoded.
    """
    if not root.is_dir():
        raise ValueError(f"data.root: no folder {root}")
    names = find_files(root)
    if not names:
        raise ValueError(f"data.root: no images found under {root} (looked for {', '.join(EXTENSIONS)})")
    fingerprint = _fingerprint(root, names)
    identity = f"{_FORMAT} {fingerprint} {limits} {full} {root.resolve()}"
    key = hashlib.sha256(identity.encode(errors="replace")).hexdigest()[:24]
    path = cache_folder() / f"scan-{key}.npz"
    cached = load_arrays(path)
    if cached is None:
        verdicts = _look_at_all(root, names, limits, full, threads)
        cached = {
            "sizes": np.array([size for size, _ in verdicts], dtype=np.int64).reshape(-1, 2),
            "reasons": np.array([reason for _, reason in verdicts], dtype=np.str_),
        }
        save_arrays(path, cached)
    return _sorted_out(root, names, cached["sizes"].astype(np.int64), cached["reasons"].tolist(), fingerprint)


def _fingerprint(root: Path, names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        try:
            status = (root / name).stat()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        except OSError:  # a link to nothing
            digest.update(f"{name}\0\0\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


Verdict = tuple[tuple[int, int], str]  # (H, W), "" or the reason of refusal


def _look_at_all(root: Path, names: list[str], limits: Limits, full: bool, threads: int) -> list[Verdict]:
    def look(name: str) -> Verdict:
        try:
            content = read_bytes(root / name, limits)
            size = image_size(content, limits)
            if full:
                size = decode(content, 3, limits).shape[:2]
            return size, ""
        except UnreadableError as refusal:
            return (0, 0), str(refusal)

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(look, names))


def _sorted_out(
    root: Path,
    names: list[str],
    sizes: NDArray[np.int64],  # [N, 2]
    reasons: list[str],
    fingerprint: str,
) -> Scan:
    good = [i for i, reason in enumerate(reasons) if not reason]
    refused = [(name, reason) for name, reason in zip(names, reasons, strict=True) if reason]
    if not good:
        raise ValueError(f"data.root: none of the {len(names)} files under {root} can be decoded ({refused[0][1]})")
    return Scan([names[i] for i in good], sizes[good], refused, fingerprint)
