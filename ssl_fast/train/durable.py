"""Files that survive a crash: atomic writes, content hashes, and a lock that dies with its process."""

import fcntl
import hashlib
import os
import weakref
from pathlib import Path
from typing import IO


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (creations, renames, deletions) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves either the old content or the new one, never a mixture.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            sync_file(file)
        os.rename(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_file(file: IO[bytes]) -> None:
    """Flush one open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, or of a folder's: the names and contents of all files in it, in sorted order.

    Raises:
        OSError: the path is missing or cannot be read.
    """
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for child in sorted(path.rglob("*")):
        if child.is_file():
            digest.update(f"{child.relative_to(path).as_posix()}\0{sha256_of(child)}\n".encode())
    return digest.hexdigest()


class Lock:
    """An exclusive lock on a folder, held by one process until it is released or the process ends in any way.

    ``flock`` belongs to the open file, which a forked child shares: without care, a data worker that outlives its
    killed parent would keep the run locked. Children therefore close their copy as soon as they exist.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; False when another process (or another Lock) holds it.

        Raises:
            OSError: the folder cannot be written, or its file system knows no locks.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._descriptor = descriptor
        _held.add(self)
        return True

    def release(self) -> None:
        """Let go of the lock. Closing the last copy of the descriptor releases it; the file stays."""
        _held.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _forget_in_child() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_forget_in_child)
