"""The collectives, on two and three gloo ranks with unequal numbers of rows, and alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_fast import distributed
from tests.ranks import run_ranks

SIZES = {2: (2, 5), 3: (3, 0, 4)}


def joined(world_size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.arange(sum(SIZES[world_size]) * 3, dtype=torch.float64).reshape(-1, 3).div(7).to(dtype)


def on_each_rank(rank: int, world_size: int) -> None:
    group = distributed.world()
    assert group is not None and (distributed.rank(), distributed.world_size()) == (rank, world_size)
    assert (distributed.rank(group), distributed.world_size(group)) == (rank, world_size)
    sizes = SIZES[world_size]
    assert distributed.gather_sizes(sizes[rank], group, torch.device("cpu")) == list(sizes)
    gathering(rank, world_size, group)
    means(rank, world_size, group)
    agreement(rank, group)
    parameters(rank, world_size, group)


def gathering(rank: int, world_size: int, group: dist.ProcessGroup) -> None:
    sizes = SIZES[world_size]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool):
        rows = joined(world_size, dtype)
        for whole in (rows, rows[:, 0], rows[:, :, None].expand(-1, -1, 2)):  # also columns, and strides of 0
            mine = whole.split(sizes)[rank]
            assert torch.equal(distributed.all_gather_rows(mine, group), whole)
            assert torch.equal(distributed.all_gather_rows(mine, group, list(sizes)), whole)
    tracked = torch.ones(sizes[rank], 2, requires_grad=True)
    assert not distributed.all_gather_rows(tracked, group).requires_grad
    assert distributed.all_gather_rows(torch.ones(0, 4), group).shape == (0, 4)


def means(rank: int, world_size: int, group: dist.ProcessGroup) -> None:
    rows = joined(world_size)[:, 0].sin()
    weight = joined(world_size)[:, 1].cos().abs()
    for w in (None, weight):
        x, all_w = rows.clone().requires_grad_(), None if w is None else w.clone().requires_grad_()
        expected = (x.mean() if all_w is None else (x * all_w).sum() / all_w.sum()).sin()
        wanted = torch.autograd.grad(expected, [t for t in (x, all_w) if t is not None])
        for grad_reduce, factor in (("mean", world_size), ("sum", 1)):
            mine = rows.split(SIZES[world_size])[rank].clone().requires_grad_()
            mine_w = None if w is None else w.split(SIZES[world_size])[rank].clone().requires_grad_()
            value = distributed.global_mean(mine, mine_w, group, grad_reduce).sin()
            torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)
            found = torch.autograd.grad(value, [t for t in (mine, mine_w) if t is not None])
            for ours, theirs in zip(found, wanted, strict=True):
                share = theirs.split(SIZES[world_size])[rank]
                torch.testing.assert_close(ours / factor, share, rtol=1e-13, atol=1e-15)
    mine = rows.split(SIZES[world_size])[rank].clone().requires_grad_()
    total = distributed.global_sum(mine, group)
    torch.testing.assert_close(total, rows.sum(), rtol=1e-14, atol=0)
    assert torch.equal(torch.autograd.grad(total, mine)[0], torch.full_like(mine, world_size))
    assert distributed.global_mean(torch.ones(0), None, group) == 0


def agreement(rank: int, group: dist.ProcessGroup) -> None:
    assert distributed.all_agree(True, group)
    assert not distributed.all_agree(rank == 0, group)
    assert distributed.all_agree(torch.tensor(True), group)
    assert not distributed.all_agree(torch.tensor(rank != 0), group)
    assert distributed.broadcast_object({"rank": rank, "name": "é"}, group) == {"rank": 0, "name": "é"}
    assert distributed.broadcast_object(rank, group, source=1) == 1
    distributed.barrier(group)


def parameters(rank: int, world_size: int, group: dist.ProcessGroup) -> None:
    model = torch.nn.Linear(3, 2)
    half = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    unused = torch.nn.Parameter(torch.zeros(4))
    for parameter in (*model.parameters(), half):
        parameter.grad = torch.full_like(parameter, rank + 1.0)
    distributed.average_gradients([*model.parameters(), half, unused], group)
    mean = (world_size + 1) / 2
    assert all(bool((p.grad == mean).all()) for p in (*model.parameters(), half)) and unused.grad is None


@pytest.mark.parametrize("world_size", [2, 3])
def test_collectives_on_ranks_with_unequal_rows(world_size: int, tmp_path: Path) -> None:
    run_ranks(on_each_rank, world_size, tmp_path)


def test_alone_nothing_is_communicated() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    assert distributed.world() is None and distributed.rank() == 0 and distributed.world_size() == 1
    gathered = distributed.all_gather_rows(rows, None)
    assert torch.equal(gathered, rows) and not gathered.requires_grad
    assert distributed.gather_sizes(3, None, rows.device) == [3]
    assert distributed.all_agree(True, None) and not distributed.all_agree(torch.tensor(False), None)
    assert distributed.broadcast_object("x", None) == "x"
    distributed.average_gradients([torch.nn.Parameter(rows)], None)
    distributed.barrier(None)
    assert distributed.global_mean(torch.tensor([1.0, 3.0])) == 2
    assert distributed.global_mean(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])) == 1.5


def test_mean_of_nothing_is_zero_and_so_are_its_gradients() -> None:
    rows = torch.ones(2, requires_grad=True)
    for value in (distributed.global_mean(rows, torch.zeros(2)), distributed.global_mean(rows[:0])):
        assert value == 0
        assert torch.equal(torch.autograd.grad(value, rows)[0], torch.zeros(2))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"grad_reduce must be 'mean'.*got 'avg'"):
        distributed.global_mean(torch.ones(2), grad_reduce="avg")
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu' or 'cuda', got 'tpu'"):
        distributed.initialize("tpu")


@pytest.mark.nightly
def test_initialize_joins_the_ranks_of_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import os\n"
        "from ssl_fast import distributed as d\n"
        "device = d.initialize('cpu')\n"
        "line = f'{device} {d.rank()} of {d.world_size()} {d.all_agree(True, d.world())}\\n'\n"
        "os.write(1, line.encode())\n"  # in one piece: the ranks share a pipe, and print may write its newline apart
        "d.shutdown()\n"
        "assert d.world() is None\n"
    )
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    alone = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=60)
    assert alone.stdout == "cpu 0 of 1 True\n", alone.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    both = subprocess.run(torchrun, capture_output=True, text=True, env=environment, timeout=120)
    assert sorted(both.stdout.split("\n")) == ["", "cpu 0 of 2 True", "cpu 1 of 2 True"], both.stderr
