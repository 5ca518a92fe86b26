"""Trials in forked children: torch is imported once, and a child may be killed at any point."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

import pytest


def run_in_child(function: Callable[[], object]) -> int:
    """Run a function in a forked child; its exit code, or minus the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
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
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], int]:
    return run_in_child


@pytest.fixture
def kill_self() -> Callable[[], None]:
    return die
