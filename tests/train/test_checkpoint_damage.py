"""Damaged and hostile checkpoints: none is loaded, each is named."""

import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from ssl_fast.train.checkpoint import CheckpointError, Checkpoints, FutureFormatError, verify
from tests.train.checkpoints import flip, load_step, seal


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
