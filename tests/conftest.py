"""One thread everywhere: bit-identity holds at a fixed number of threads, and two test processes share two cores."""

import os
import zlib
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)
# Autograd chooses its threads in a process's first backward pass: after one inside torch.compile, or beside a GPU, a
# forked child can make none.
if not torch.cuda.is_available():
    torch.ones((), requires_grad=True).backward()

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_seed(request: pytest.FixtureRequest) -> None:
    """A test's random numbers are its own: not those of the tests that happened to run before it in its process."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real image packs beside the checkout; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real image packs are not beside this checkout ({SHARED_DATA.name} is absent)")
    return SHARED_DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
