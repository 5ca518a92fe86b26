"""The user's cache folder: arrays made once, written atomically, checked by hash when read."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)
_HASH = "sha256"


def cache_folder() -> Path:
    """$SSL_FAST_CACHE, else ssl_fast in $XDG_CACHE_HOME, else ~/.cache/ssl_fast."""
    own = os.environ.get("SSL_FAST_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssl_fast"


def save_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Writes `arrays` with their hash, to a temporary file that is then renamed; where that fails, it warns."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    except OSError as error:
        _log.warning("cache not written: %s", error)
        return
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **{**arrays, _HASH: np.array(_digest(arrays))})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _log.warning("cache not written: %s", error)
        Path(temporary).unlink(missing_ok=True)


def load_arrays(path: Path) -> dict[str, NDArray[np.generic]] | None:
    """The arrays of `save_arrays`, or None when the file is absent, damaged or of another content."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        recorded = str(arrays.pop(_HASH))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("cache file %s is damaged and is made again: %s", path.name, error)
        return None
    if recorded != _digest(arrays):
        _log.warning("cache file %s does not match its hash and is made again", path.name)
        return None
    return arrays


def _digest(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
