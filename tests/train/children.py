"""Trials in forked children: torch is imported once, and a child may be killed at any moment."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch


def start(function: Callable[[], object]) -> int:
    """Run a function in a forked child, at once; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    logging.getLogger().handlers.clear()  # pytest's: the child logs as a process of its own
    try:
        function()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(child: int) -> int:
    """Wait for a child; its exit code, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.002)


def differing(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """The places at which two states differ by as much as a bit."""
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(bits(a), bits(b)):
            yield where
    elif isinstance(a, dict):
        for key in a.keys() | b.keys():
            yield from differing(a.get(key), b.get(key), f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differing(x, y, f"{where}[{index}]")
    elif a != b:
        yield where


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
