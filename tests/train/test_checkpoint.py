"""What goes into a checkpoint comes out; how many are kept; who writes and reads among ranks."""

import errno
import os
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ssl_fast.train.checkpoint import Checkpoints, FutureFormatError, verify
from tests.train.checkpoints import flip, hidden, load_step, make_state, same, seal


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
