"""Saves that end early: a full disk, an error, a killed process."""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from ssl_fast.train import checkpoint
from ssl_fast.train.checkpoint import CheckpointError, Checkpoints
from tests.train.checkpoints import hidden, load_step, make_state


@pytest.mark.parametrize("limit", [0, 1, 500, 5_000, 12_000, 12_500])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_remains(two: Checkpoints, in_child, limit: int):
    assert limit < (two.path(20) / "state.pt").stat().st_size

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(CheckpointError) as error:
            two.save(30, make_state(30))
        text = str(error.value)
        assert "step_00000030 could not be written: File too large; the earlier checkpoints are intact" in text
        assert isinstance(error.value, RuntimeError) and "\n" not in text
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        two.save(40, make_state(40))  # training may go on

    before = {p: p.read_bytes() for p in two.path(20).iterdir()}
    assert in_child(save) == 0
    assert two.steps() == [20, 40] and not hidden(two)
    assert {p: p.read_bytes() for p in two.path(20).iterdir()} == before
    assert load_step(two) == 40


class WatchedFile:
    """A file whose writes are steps of the save."""

    def __init__(self, file: IO[bytes], step: Callable) -> None:
        self.file, self.step = file, step

    def write(self, data: bytes | memoryview) -> int:
        return self.step("write", lambda half: self.file.write(data[: len(data) // 2] if half else data))

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def intercept(monkeypatch, before: Callable, after: Callable = lambda name, count: None, halved: int = 0) -> None:
    """Call before(name, count) and after(name, count) around every step of a save; count runs over all of them.

    When step number `halved` is a write, only its first half reaches the file.
    """
    count = 0

    def step(name: str, call: Callable) -> object:
        nonlocal count
        count += 1
        mine = count
        before(name, mine)
        try:
            return call(mine == halved)
        finally:  # a call that fails (mkdir of a folder that exists) is a step, too
            after(name, mine)

    def wrap(owner: object, name: str) -> None:
        original = getattr(owner, name)
        replacement = lambda *args, **options: step(name, lambda half: original(*args, **options))  # noqa: E731
        monkeypatch.setattr(owner, name, replacement)

    for name in ("mkdir", "fsync", "rename"):
        wrap(os, name)
    wrap(shutil, "rmtree")
    monkeypatch.setattr(checkpoint, "open", lambda *a, **k: WatchedFile(open(*a, **k), step), raising=False)  # noqa: SIM115


def events_of_a_save(two: Checkpoints, monkeypatch, step: int = 30) -> list[str]:
    names: list[str] = []
    with monkeypatch.context() as patch:
        intercept(patch, lambda name, count: names.append(name))
        two.save(step, make_state(step))
    return names


def test_files_reach_the_disk_before_the_name_and_the_name_before_the_purge(two: Checkpoints, monkeypatch):
    names = [name for name in events_of_a_save(two, monkeypatch) if name != "mkdir"]
    last_write = max(i for i, name in enumerate(names) if name == "write")
    assert names[: last_write + 1] == ["write"] * (last_write - 1) + ["fsync", "write"]  # the state; the manifest
    #       manifest, its folder, into place, parent folder; nothing temporary is left; step 10 goes
    assert names[last_write + 1 :][:6] == ["fsync", "fsync", "rename", "fsync", "rmtree", "rename"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_step_of_a_save_is_one_sentence(two: Checkpoints, monkeypatch, code: int):
    shutil.copytree(two.folder, two.folder.with_name("template"))
    total = len(events_of_a_save(two, monkeypatch))
    raised = 0
    for point in range(1, total + 1):
        shutil.rmtree(two.folder)
        shutil.copytree(two.folder.with_name("template"), two.folder)

        def fail(name: str, count: int, point: int = point) -> None:
            if count == point and name != "rmtree":
                raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            intercept(patch, fail)
            try:
                two.save(30, make_state(30))
            except CheckpointError as error:
                raised += 1
                assert os.strerror(code) in str(error) and str(two.path(30)) in str(error)
        assert load_step(two) in (20, 30) and not hidden(two)
        two.save(40, make_state(40))
        assert load_step(two) == 40 and len(two.steps()) == 2
    assert raised >= 6


def test_an_unusable_folder_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written: Not a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, make_state(1))


def test_a_deleted_folder_is_made_again(two: Checkpoints):
    shutil.rmtree(two.folder)
    two.save(30, make_state(30))
    assert load_step(two) == 30


@pytest.mark.parametrize(
    ("step", "moment"),
    [
        (30, "within or after"),
        pytest.param(20, "before", marks=pytest.mark.nightly),
        pytest.param(30, "before", marks=pytest.mark.nightly),
        pytest.param(20, "within or after", marks=pytest.mark.nightly),
    ],
)
def test_killed_at_every_point_of_a_save(two: Checkpoints, monkeypatch, in_child, kill_self, step: int, moment: str):
    """Step 30 is new; step 20 replaces one that exists."""
    shutil.copytree(two.folder, two.folder.with_name("template"))
    total = len(events_of_a_save(two, monkeypatch, step))
    survivors = set()
    for point in range(1, total + 1):
        shutil.rmtree(two.folder)
        shutil.copytree(two.folder.with_name("template"), two.folder)

        def kill(name: str, count: int, point: int = point) -> None:
            if count == point:
                kill_self()

        def save(kill: Callable = kill, point: int = point) -> None:
            if moment == "before":
                intercept(monkeypatch, kill)
            else:
                intercept(monkeypatch, lambda name, count: None, kill, halved=point)
            two.save(step, make_state(step))

        assert in_child(save) == -9
        survivors.add(load_step(two))
        assert not hidden(two)
        two.save(40, make_state(40))
        assert load_step(two) == 40 and len(two.steps()) == 2 and not hidden(two)
    assert survivors == {20, step}


def test_a_reader_leaves_a_save_under_way_alone(two: Checkpoints):
    lock = checkpoint.Lock(two.folder)
    assert lock.acquire()
    (two.folder / ".step_00000030.tmp").mkdir()
    assert load_step(Checkpoints(two.folder)) == 20
    assert hidden(two) == [".step_00000030.tmp"]
    with pytest.raises(CheckpointError, match="another process is writing"):
        two.save(30, make_state(30))
    lock.release()
    assert load_step(Checkpoints(two.folder)) == 20 and not hidden(two)
