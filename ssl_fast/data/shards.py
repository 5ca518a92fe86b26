"""Where the samples of tar shards lie: an index made once by reading the shards' headers, cached."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.cache import cache_folder, load_arrays, save_arrays
from ssl_fast.data.decode import EXTENSIONS
from ssl_fast.data.scan import find_files, stamps_of

_FORMAT = 1  # part of the cache's key: raise it when samples are found otherwise
_LABELS = ("cls", "json", "txt")
_LONGEST_TEXT = 1 << 20  # bytes of a label's file


@dataclass
class Index:
    """The samples of some shards, in the order of their names.

    Attributes:
        names: "shard.tar/key" of each.
        shards: the tar files, relative to the root.
        shard: [N] number of the sample's shard.
        begin, size: [N] where its image lies in the shard, bytes.
        texts: {"cls" | "json" | "txt": one text a sample, "" where there is none}.
        stamps: a hash of the shards' names, sizes and times.
    """

    names: list[str]
    shards: list[str]
    shard: NDArray[np.int64]
    begin: NDArray[np.int64]
    size: NDArray[np.int64]
    texts: dict[str, list[str]]
    stamps: str


def open_index(root: Path) -> Index:
    """The index of all `.tar` files under `root`, from the cache or made now.

    Raises:
        ValueError: no folder, no shards, no images in them, or a file that is no tar archive.
    """
    if not root.is_dir():
        raise ValueError(f"data.root: no folder {root}")
    shards = find_files(root, (".tar",))
    if not shards:
        raise ValueError(f"data.root: no .tar files under {root}")
    stamps = stamps_of(root, shards)
    identity = "\0".join([str(_FORMAT), str(root.resolve()), stamps, *shards])
    key = hashlib.sha256(identity.encode(errors="replace")).hexdigest()[:24]
    path = cache_folder() / f"shards-{key}.npz"
    arrays = load_arrays(path)
    if arrays is None:
        samples = sorted(sample for number, shard in enumerate(shards) for sample in _samples(root, shard, number))
        if not samples:
            raise ValueError(f"data.root: no images in the {len(shards)} .tar files under {root}")
        names, numbers, texts = zip(*samples, strict=True)
        joined = {kind: _joined([text.get(kind, "") for text in texts]) for kind in _LABELS}
        arrays = {"names": _joined(names), "numbers": np.array(numbers, dtype=np.int64), **joined}
        save_arrays(path, arrays)
    shard, begin, size = arrays["numbers"].astype(np.int64).T
    return Index(
        _split(arrays["names"]), shards, shard, begin, size, {kind: _split(arrays[kind]) for kind in _LABELS}, stamps
    )


Sample = tuple[str, tuple[int, int, int], dict[str, str]]  # name, (shard, begin, size), texts


def _samples(root: Path, shard: str, number: int) -> Iterator[Sample]:
    """The samples of a shard: files with the same name up to the first dot of the last part."""
    images: dict[str, tuple[int, int, int]] = {}
    texts: dict[str, dict[str, str]] = {}
    try:
        with tarfile.open(root / shard) as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                stem, _, kind = file.partition(".")
                key, kind = (f"{folder}/{stem}" if folder else stem), kind.lower()
                if not member.isreg() or file.startswith("."):
                    continue
                if f".{kind}" in EXTENSIONS:
                    images[key] = (number, member.offset_data, member.size)
                elif kind in _LABELS and member.size <= _LONGEST_TEXT:
                    content = archive.extractfile(member)
                    assert content is not None
                    texts.setdefault(key, {})[kind] = content.read().decode("utf-8", "replace").strip()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"data.root: {root / shard} is no readable tar archive: {error}") from error
    for key, place in images.items():
        yield f"{shard}/{key}", place, texts.get(key, {})


def _joined(texts: tuple[str, ...] | list[str]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(list(texts)).encode(), dtype=np.uint8)


def _split(joined: NDArray[np.generic]) -> list[str]:
    texts: list[str] = json.loads(joined.tobytes())
    return texts
