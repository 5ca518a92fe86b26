"""Every instruction set this processor has, and numbers of threads that are put back."""

from collections.abc import Iterator

import pytest
import torch

cpu = pytest.importorskip("ssl_fast._cpu", reason="the CPU module was not built")


@pytest.fixture(params=["avx512", "avx2", "generic"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu.isa()
    try:
        cpu.set_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    cpu.set_isa(before)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
