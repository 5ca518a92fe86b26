import os
import signal
from collections.abc import Callable

import pytest

from tests.train.children import end, start


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], int]:
    """in_child(function): run it in a forked child and wait; its exit code, or minus the signal that ended it."""
    return lambda function: end(start(function))


@pytest.fixture
def kill_self() -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signal.SIGKILL)
