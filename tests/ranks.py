"""Runs a function on several gloo ranks of this machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from tests.forked import prepare_server


def run_ranks(function: Callable[..., None], world_size: int, folder: Path, *args: Any) -> None:
    """Calls `function(rank, world_size, *args)` in one process per rank; an exception in any of them is raised here.

    The function must lie at the top of its module. The ranks meet in a file of `folder`: no port is taken.
    """
    # Ranks are forked from a server that has imported what they need and done nothing: a fork of this process would
    # inherit the threads of torch.compile and CUDA, which autograd refuses.
    prepare_server()
    inputs = (function, world_size, str(folder / "store"), args)
    torch.multiprocessing.start_processes(_rank, inputs, world_size, start_method="forkserver")


def _rank(rank: int, function: Callable[..., None], world_size: int, store: str, args: tuple[Any, ...]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    function(rank, world_size, *args)
    # All leave together, and the group ends with the process: torch 2.6 may deadlock over the GIL in destroying it.
    dist.barrier()
