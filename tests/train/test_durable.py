import errno
import os
import signal
import time
from pathlib import Path

import pytest

from ssl_fast.train.durable import Lock, sha256_of, write_atomic


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_the_hash_of_a_folder_counts_names_and_contents(tmp_path: Path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_bytes(b"1")
    (folder / "b").write_bytes(b"2")
    seen = [sha256_of(folder)]
    assert sha256_of(folder) == seen[0]
    (folder / "b").write_bytes(b"3")
    seen.append(sha256_of(folder))
    (folder / "b").rename(folder / "c")
    seen.append(sha256_of(folder))
    (folder / "sub" / "a").rename(folder / "a")
    seen.append(sha256_of(folder))
    assert len(set(seen)) == 4


def test_the_hash_of_a_file_is_sha256(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == expected


def test_a_lock_excludes_until_it_is_released(tmp_path: Path, in_child):
    lock = Lock(tmp_path)
    assert lock.acquire()
    assert in_child(lambda: os._exit(0 if not Lock(tmp_path).acquire() else 1)) == 0
    lock.release()
    assert in_child(lambda: os._exit(0 if Lock(tmp_path).acquire() else 1)) == 0


def test_a_killed_process_leaves_no_lock_though_its_forked_child_lives(tmp_path: Path):
    """A data worker may outlive its parent by seconds; the run must be free at once."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        lock = Lock(tmp_path)
        assert lock.acquire()
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        os.write(writer, str(worker).encode())
        time.sleep(60)
        os._exit(1)
    worker = int(os.read(reader, 100))
    try:
        assert not Lock(tmp_path).acquire()
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.kill(worker, 0)  # still there
        assert Lock(tmp_path).acquire()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(reader)
        os.close(writer)
