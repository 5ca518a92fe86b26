import errno
import json
import logging
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ssl_fast.train import checkpoint
from ssl_fast.train.checkpoint import CheckpointError, Checkpoints, FutureFormatError, verify


def make_state(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {"step": step, "model": {"weight": torch.randn(64, 48, generator=generator)}, "betas": (0.9, 0.999)}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@pytest.fixture
def two(tmp_path: Path) -> Checkpoints:
    """Checkpoints of steps 10 and 20."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (10, 20):
        checkpoints.save(step, make_state(step))
    return checkpoints


def load_step(checkpoints: Checkpoints) -> int | None:
    """The step that loads, with its content compared; None when nothing loads."""
    found = checkpoints.load()
    if found is None:
        return None
    state, path = found
    assert same(state, make_state(state["step"])) and path == checkpoints.path(state["step"])
    return state["step"]


def hidden(checkpoints: Checkpoints) -> list[str]:
    return [name for name in os.listdir(checkpoints.folder) if name.startswith(".step")]


def seal(folder: Path, **changes: object) -> None:
    """Rewrite a manifest so that it fits the files, as an attacker or a later version would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / "state.pt").read_bytes()
    manifest["files"]["state.pt"] = {"size": len(data), "sha256": checkpoint.hashlib.sha256(data).hexdigest()}
    manifest.update(changes)
    manifest["sha256"] = checkpoint._manifest_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


# what goes in comes out


def test_a_state_comes_back_bit_for_bit(tmp_path: Path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    tensors = {str(d): torch.ones(3).to(d) for d in (torch.bfloat16, torch.float16, torch.float64, torch.uint8)}
    state = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    state |= {"tensors": tensors, "none": None, "flag": True, "list": [1, ("a", 2.5)], "inf": float("inf")}
    path = Checkpoints(tmp_path).save(7, state)
    loaded, where = Checkpoints(tmp_path).load()
    assert same(loaded, state) and where == path == tmp_path / "step_00000007"
    assert sorted(os.listdir(path)) == ["manifest.json", "state.pt"]
    manifest = verify(path)
    assert (manifest["format_version"], manifest["step"], manifest["world_size"]) == (1, 7, 1)
    fresh = torch.optim.AdamW(model.parameters())
    fresh.load_state_dict(loaded["optimizer"])
    assert same(fresh.state_dict(), optimizer.state_dict())


def test_an_ordered_dict_and_parameters_become_plain(tmp_path: Path):
    Checkpoints(tmp_path).save(1, OrderedDict(weight=torch.nn.Parameter(torch.ones(2))))
    state, _ = Checkpoints(tmp_path).load()
    assert type(state) is dict and type(state["weight"]) is torch.Tensor and not state["weight"].requires_grad


def test_a_slice_does_not_take_its_storage_along(tmp_path: Path):
    large = torch.randn(1_000_000)
    path = Checkpoints(tmp_path).save(1, {"slice": large[10:20]})
    assert (path / "state.pt").stat().st_size < 10_000
    assert torch.equal(Checkpoints(tmp_path).load()[0]["slice"], large[10:20])


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.float64(1.0), "numpy.float64"),
        (np.zeros(2), "numpy.ndarray"),
        ({1, 2}, "builtins.set"),
        (print, "builtin_function_or_method"),
        (Path("x"), "PosixPath"),
        (torch.device("cpu"), "torch.device"),
        ({(1, 2): 3}, "key (1, 2)"),
    ],
)
def test_other_objects_are_refused_by_place(tmp_path: Path, value: object, named: str):
    with pytest.raises(ValueError) as error:
        Checkpoints(tmp_path).save(1, {"optimizer": {"state": [0, value]}})
    assert "state['optimizer']['state'][1]" in str(error.value) and named in str(error.value)
    assert Checkpoints(tmp_path).load() is None


def test_an_absent_folder_holds_no_checkpoint_and_is_not_made(tmp_path: Path):
    assert Checkpoints(tmp_path / "none").load() is None
    assert not (tmp_path / "none").exists()


# how many are kept


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int):
    checkpoints = Checkpoints(tmp_path, keep)
    for step in range(5):
        checkpoints.save(step, make_state(step))
    assert checkpoints.steps() == list(range(5))[-keep:] and not hidden(checkpoints)


def test_keep_must_be_positive(tmp_path: Path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, 0)


def test_a_failing_purge_is_a_warning(two: Checkpoints, monkeypatch, caplog):
    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    two.save(30, make_state(30))
    assert load_step(two) == 30
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step_00000010 could not be deleted" in caplog.text
    monkeypatch.undo()
    two.save(40, make_state(40))
    assert two.steps() == [30, 40] and not hidden(two)


def test_saving_a_step_again_replaces_it(two: Checkpoints):
    two.save(20, {**make_state(20), "again": True})
    assert two.load()[0]["again"] is True and two.steps() == [10, 20] and not hidden(two)


def test_refused_and_abandoned_checkpoints_give_way(two: Checkpoints):
    flip(two.path(20) / "state.pt", 999)
    assert load_step(two) == 10
    two.save(15, make_state(15))
    assert two.steps() == [10, 15]


# damage


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def refused_by_name(two: Checkpoints, caplog) -> bool:
    """Step 10 loads in the place of 20, with exactly one warning that names 20's folder."""
    caplog.clear()
    fell_back = load_step(two) == 10
    return fell_back and [str(two.path(20)) in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(("name", "trials"), [("state.pt", 200), ("manifest.json", 100)])
def test_a_flipped_bit_is_never_loaded(two: Checkpoints, caplog, name: str, trials: int):
    path = two.path(20) / name
    good, chance = path.read_bytes(), random.Random(1)
    for bit in chance.sample(range(8 * len(good)), trials):
        flip(path, bit)
        assert refused_by_name(two, caplog), f"bit {bit} of {name}"
        path.write_bytes(good)
    assert load_step(two) == 20


def test_every_bit_of_the_manifest_counts(two: Checkpoints):
    path = two.path(20) / "manifest.json"
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        flip(path, bit)
        with pytest.raises(CheckpointError) as error:
            verify(two.path(20), 20)
        assert not isinstance(error.value, FutureFormatError)
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_a_truncated_file_is_never_loaded(two: Checkpoints, caplog, name: str):
    path = two.path(20) / name
    good, chance = path.read_bytes(), random.Random(2)
    for size in [0, 1, len(good) - 1, *chance.sample(range(len(good)), 50)]:
        path.write_bytes(good[:size])
        assert refused_by_name(two, caplog), f"{name} cut to {size} bytes"


def test_a_zeroed_page_is_never_loaded(two: Checkpoints, caplog):
    path = two.path(20) / "state.pt"
    good, chance = path.read_bytes(), random.Random(3)
    for start in chance.sample(range(len(good) - 512), 50):
        damaged = bytearray(good)
        damaged[start : start + 4096] = bytes(len(good[start : start + 4096]))
        assert damaged != good
        path.write_bytes(damaged)
        assert refused_by_name(two, caplog), f"zeros from {start}"


@pytest.mark.parametrize(
    "content", [None, b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"sha256": 1}', b"1e999"]
)
def test_a_manifest_that_is_none_is_refused(two: Checkpoints, caplog, content: bytes | None):
    path = two.path(20) / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert refused_by_name(two, caplog)


def test_a_missing_file_a_misplaced_folder_and_junk_are_refused(two: Checkpoints, caplog):
    shutil.copytree(two.path(10), two.path(30))
    (two.path(20) / "state.pt").unlink()
    two.path(40).mkdir()
    two.path(50).write_text("a file in the place of a folder")
    (two.folder / "step_latest").mkdir()
    assert load_step(two) == 10
    assert [str(two.path(step)) in r.message for step, r in zip((50, 40, 30, 20), caplog.records, strict=True)] == [
        True
    ] * 4
    assert "manifest is of step 10" in caplog.text and "state.pt is missing" in caplog.text


def test_nothing_good_left_is_none_with_a_warning_each(two: Checkpoints, caplog):
    for step in (10, 20):
        flip(two.path(step) / "state.pt", 12_345)
    assert two.load() is None
    assert len(caplog.records) == 2 and all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_later_format_is_refused_by_name_and_not_passed_over(two: Checkpoints):
    seal(two.path(20), format_version=2)
    with pytest.raises(FutureFormatError, match=r"step_00000020 has format_version 2.*reads up to 1"):
        two.load()


# hostile files


class Payload:
    """Pickles to a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def payloads(canary: Path) -> list[object]:
    touch, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    import functools
    import operator
    import runpy

    system = Payload(os.system, touch)
    return [
        system,
        Payload(subprocess.call, ["touch", str(canary)]),
        Payload(subprocess.Popen, ["touch", str(canary)]),
        Payload(os.popen, touch),
        Payload(os.mkdir, str(canary)),
        Payload(eval, code),
        Payload(exec, code),
        Payload(open, str(canary), "w"),
        Payload(os.open, str(canary), os.O_CREAT),
        Payload(os.symlink, "x", str(canary)),
        Payload(shutil.copy, __file__, str(canary)),
        Payload(functools.partial(os.system, touch)),
        Payload(functools.reduce, getattr, ["a"], Payload(os.system, touch)),
        Payload(operator.methodcaller("touch"), canary),
        Payload(runpy.run_path, str(canary) + ".py"),
        Payload(pickle.loads, pickle.dumps(system)),
        Payload(torch.load, str(canary), None),
        Payload(__import__, "antigravity"),
        {"nested": {"deep": [torch.ones(2), system]}},
        OrderedDict(a=system),
    ]


def ways_to_write(path: Path) -> list[object]:
    def tar(value: object) -> None:
        inner = path.with_suffix(".inner")
        inner.write_bytes(pickle.dumps(value))
        with tarfile.open(path, "w") as archive:
            archive.add(inner, "pickle")
        inner.unlink()

    def script(value: object) -> None:
        with warnings.catch_warnings(action="ignore"):  # deprecated, and yet torch.load opens it
            torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(value))

    return [
        script,
        lambda value: torch.save({"state": value}, path),
        lambda value: torch.save(value, path, _use_new_zipfile_serialization=False),
        lambda value: path.write_bytes(pickle.dumps(value)),
        lambda value: path.write_bytes(pickle.dumps({"state": value}, protocol=0)),
        tar,
    ]


def test_hostile_pickles_never_run(two: Checkpoints, tmp_path: Path, caplog):
    canary, path = tmp_path / "canary", two.path(20) / "state.pt"
    before = set(os.listdir(tmp_path))
    for index, payload in enumerate(payloads(canary)):
        for way, write in enumerate(ways_to_write(path)):
            write(payload)
            seal(two.path(20))
            assert refused_by_name(two, caplog), f"payload {index} written in way {way}"
            assert set(os.listdir(tmp_path)) == before and "antigravity" not in sys.modules
    for payload in payloads(canary)[:2]:
        (two.path(20) / "manifest.json").write_bytes(pickle.dumps(payload))
        assert refused_by_name(two, caplog) and not canary.exists()


def test_the_payloads_are_live(tmp_path: Path):
    """The canary test proves something only if an unsafe loader would have run the payload."""
    pickle.loads(pickle.dumps(payloads(tmp_path / "canary")[0]))
    assert (tmp_path / "canary").exists()


# a disk that is full


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


# a process that is killed


@pytest.mark.parametrize("step", [30, 20])
@pytest.mark.parametrize("moment", ["before", "within or after"])
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


# ranks


def on_two_ranks(tmp_path: Path, in_child, work) -> None:
    def both() -> None:
        rank = 1 if os.fork() == 0 else 0
        store = f"file://{tmp_path / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
        work(rank)
        dist.barrier()
        dist.destroy_process_group()
        if rank == 1:
            os._exit(0)
        assert os.wait()[1] == 0

    assert in_child(both) == 0
    (tmp_path / "store").unlink(missing_ok=True)


def test_rank_0_writes_and_chooses_and_every_rank_reads(two: Checkpoints, tmp_path: Path, in_child):
    def work(rank: int) -> None:
        two.save(30 + rank, make_state(30 + rank))
        dist.barrier()
        if rank == 1:
            flip(two.path(30) / "state.pt", 777)
        dist.barrier()
        assert load_step(two) == 20

    on_two_ranks(tmp_path, in_child, work)
    assert two.steps() == [20, 30]
    seal(two.path(30), format_version=9)

    def refused(rank: int) -> None:
        with pytest.raises(FutureFormatError, match="format_version 9"):
            two.load()

    on_two_ranks(tmp_path, in_child, refused)
