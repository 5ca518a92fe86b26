import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_fast.train.checkpoint import Checkpoints
from tests.train.checkpoints import make_state
from tests.train.children import end, start


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], int]:
    """in_child(function): run it in a forked child and wait; its exit code, or minus the signal that ended it."""
    return lambda function: end(start(function))


@pytest.fixture
def kill_self() -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def two(tmp_path: Path) -> Checkpoints:
    """Checkpoints of steps 10 and 20."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (10, 20):
        checkpoints.save(step, make_state(step))
    return checkpoints
