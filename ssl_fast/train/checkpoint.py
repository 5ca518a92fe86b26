"""Checkpoints that are either whole or absent, and that are checked before they are believed.

    checkpoints/step_00001234/state.pt        plain dict of tensors and values, loadable with weights_only=True
                              manifest.json   format_version, step, torch, world_size, size and SHA-256 of each file

A save writes into a hidden temporary folder, flushes the files, writes the manifest last, flushes the folder, renames
it and flushes the parent: a process killed at any point leaves the earlier checkpoints as they were. torch.load
accepts most files with one flipped bit, so loading compares the hashes first. The manifest lists files by name, and
so has room for one file per rank (``shard_00001.pt``).
"""

import hashlib
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_fast import distributed
from ssl_fast.train.durable import Lock, sha256_of, sync_file, sync_folder

FORMAT_VERSION = 1
_STATE, _MANIFEST = "state.pt", "manifest.json"
_SCALARS = (bool, int, float, str, type(None))
_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or must not be read."""


class FutureFormatError(CheckpointError):
    """A checkpoint was written by a later version of the format."""


class Checkpoints:
    """The checkpoints of one stage, the newest ``keep`` of them.

    Args:
        folder: the stage's ``checkpoints`` folder; made at the first save.
        keep: how many to keep, at least 1. Two, so that one damaged file costs one interval and not the run.

    Raises:
        ValueError: keep is below 1.
    """

    def __init__(self, folder: Path | str, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder)
        self.keep = keep
        self._refused: set[int] = set()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint (good or not), ascending."""
        matches = (re.fullmatch(r"step_(\d{8,})", path.name) for path in self.folder.glob("step_*"))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of one step."""
        return self.folder / f"step_{step:08d}"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of a step (replacing one of the same step), then delete what is older than ``keep``.

        Call it on every rank or on rank 0 alone: only rank 0 writes.

        Args:
            step: number of optimiser steps done.
            state: nested dicts, lists and tuples of tensors, ints, floats, strings, bools and None.

        Returns:
            The folder ``step_<step>``.

        Raises:
            ValueError: the state holds something else; the message names the place.
            CheckpointError: the disk is full or cannot be written. Earlier checkpoints are intact.
        """
        final = self.path(step)
        if distributed.rank() == 0:
            plain = _plain(state, "state")
            try:
                with self._exclusive():
                    self._write(final, step, plain)
                    self._purge(step)
            except OSError as error:
                raise CheckpointError(_unwritten(final, error)) from error
        return final

    def load(self, map_location: str | torch.device = "cpu") -> tuple[dict[str, Any], Path] | None:
        """Read the newest good checkpoint; None when there is none.

        Rank 0 checks the hashes and chooses, all ranks read: with several ranks every one must call it, and the
        folder must be visible to all. A damaged checkpoint is passed over with one warning that names it.

        Raises:
            FutureFormatError: the newest intact checkpoint was written by a later version of the format.
        """
        found: tuple[dict[str, Any], Path] | None = None
        problem: str | None = None
        if distributed.rank() == 0:
            try:
                found = self._newest_good(map_location)
            except FutureFormatError as error:
                problem = str(error)
        name, problem = distributed.broadcast_object((found[1].name if found else "", problem), distributed.world())
        if problem is not None:
            raise FutureFormatError(problem)
        if found is not None or not name:
            return found
        return _read(self.folder / name / _STATE, map_location), self.folder / name

    def _newest_good(self, map_location: str | torch.device) -> tuple[dict[str, Any], Path] | None:
        self._clear_leftovers_if_idle()
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                verify(path, step)
                return _read(path / _STATE, map_location), path
            except FutureFormatError:
                raise
            except (CheckpointError, OSError) as error:
                self._refused.add(step)
                _log.warning("checkpoint %s is refused: %s; trying the one before it", path, error)
        return None

    def _write(self, final: Path, step: int, state: dict[str, Any]) -> None:
        temporary = self.folder / f".{final.name}.tmp"
        try:
            temporary.mkdir()
            files = {_STATE: _write_state(temporary / _STATE, state)}
            _write_manifest(temporary / _MANIFEST, step, files)
            sync_folder(temporary)
            if final.exists():
                os.rename(final, self.folder / f".{final.name}.old")
            os.rename(temporary, final)
            sync_folder(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _purge(self, step: int) -> None:
        """Delete what is beyond ``keep``, what was refused, and what lies after the step that was saved."""
        self._refused.discard(step)
        good = [s for s in self.steps() if s <= step and s not in self._refused]
        for other in set(self.steps()) - set(good[-self.keep :]):
            try:  # renamed first: a half-deleted folder must not look like a damaged checkpoint
                doomed = self.folder / f".{self.path(other).name}.gone"
                os.rename(self.path(other), doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                _log.warning("old checkpoint %s could not be deleted: %s", self.path(other), error)
        shutil.rmtree(self.folder / f".{self.path(step).name}.old", ignore_errors=True)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.folder)
        if not lock.acquire():
            raise CheckpointError(f"another process is writing a checkpoint in {self.folder}")
        try:
            self._clear_leftovers()
            yield
        finally:
            lock.release()

    def _clear_leftovers_if_idle(self) -> None:
        if not any(self.folder.glob(".step_*")):
            return
        try:
            with self._exclusive():
                pass
        except (OSError, CheckpointError):
            pass  # somebody else's run, being written or read-only: its leftovers are not ours to clear

    def _clear_leftovers(self) -> None:
        """Remove what a killed process left; bring back a checkpoint that was being replaced."""
        for path in self.folder.glob(".step_*.*"):
            final = self.folder / path.stem[1:]
            if path.suffix == ".old" and not final.exists():
                os.rename(path, final)
            else:
                shutil.rmtree(path, ignore_errors=True)


def verify(folder: Path, step: int | None = None) -> dict[str, Any]:
    """Check a checkpoint's manifest and the size and SHA-256 of every file that it lists.

    Returns:
        The manifest.

    Raises:
        FutureFormatError: an intact manifest of a later format.
        CheckpointError: anything missing, cut or changed; the message is one clause.
    """
    manifest = _read_manifest(folder)
    if step is not None and manifest["step"] != step:
        raise CheckpointError(f"its manifest is of step {manifest['step']}")
    if _STATE not in manifest["files"]:
        raise CheckpointError(f"its manifest does not list {_STATE}")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{name} is missing")
        if path.stat().st_size != expected["size"]:
            raise CheckpointError(f"{name} has {path.stat().st_size} bytes and not {expected['size']}")
        if sha256_of(path) != expected["sha256"]:
            raise CheckpointError(f"the SHA-256 of {name} is not the manifest's")
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{_MANIFEST} is missing") from None
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(f"{_MANIFEST} is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("sha256") != _manifest_hash(manifest):
        raise CheckpointError(f"{_MANIFEST} is damaged")
    version = manifest["format_version"]
    if version > FORMAT_VERSION:
        raise FutureFormatError(
            f"checkpoint {folder} has format_version {version}, and this ssl_fast reads up to {FORMAT_VERSION}: "
            "continue it with the version that wrote it, or a later one"
        )
    return manifest


def _manifest_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of all other fields: a flipped bit must not pass for another step or a later format."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _write_manifest(path: Path, step: int, files: dict[str, dict[str, Any]]) -> None:
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "torch": str(torch.__version__),
        "world_size": distributed.world_size(),
        "files": files,
    }
    manifest["sha256"] = _manifest_hash(manifest)
    with open(path, "wb") as file:
        file.write(json.dumps(manifest, indent=1).encode())
        sync_file(file)


class _HashedFile:
    """A file that hashes what is written to it, and remembers why a write failed.

    torch.save reports a full disk as ``unexpected pos 704 vs 598``; the reason is kept here.
    """

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb", buffering=0)  # noqa: SIM115  closed by _write_state
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        try:
            rest = data
            while rest:  # a raw file may take less than it is given
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered; torch.save asks for the method."""


def _write_state(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    target = _HashedFile(path)
    try:
        torch.save(state, target)  # type: ignore[arg-type]
        sync_file(target.file)
    except RuntimeError as error:
        raise target.error or OSError(str(error)) from error
    finally:
        target.file.close()
    return {"size": target.size, "sha256": target.digest.hexdigest()}


def _read(path: Path, map_location: str | torch.device) -> dict[str, Any]:
    """Load tensors and plain values only: a checkpoint whose hashes were made to fit still runs no code."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # torch.load would try its older formats, all of them pickles
            raise CheckpointError(f"{path.name} is not an archive of torch.save")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except (pickle.UnpicklingError, EOFError, RuntimeError):
        raise CheckpointError(f"{path.name} holds more than tensors and plain values") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path.name} holds a {type(state).__name__} and not a dict")
    return state


def _plain(value: Any, where: str) -> Any:
    """A copy of the state in plain containers and detached tensors; ValueError names what does not belong."""
    if isinstance(value, Tensor):
        return _detached(value, where)
    if type(value) in _SCALARS:
        return value
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise ValueError(f"{where} has the key {key!r} of type {type(key).__name__}, expected str or int")
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    raise ValueError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, "
        "expected tensors, plain numbers, strings, lists, tuples and dicts"
    )


def _detached(tensor: Tensor, where: str) -> Tensor:
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        raise ValueError(f"{where} is a {type(tensor).__qualname__}, expected a plain tensor")
    plain = tensor.detach()
    storage_bytes = plain.untyped_storage().nbytes()
    if storage_bytes > plain.numel() * plain.element_size():
        return plain.clone()  # a slice would take its whole storage along
    return plain


def _unwritten(final: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"checkpoint {final} could not be written: {reason}; the earlier checkpoints are intact"
