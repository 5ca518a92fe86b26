"""What torch is told about its kernels on a GPU; nothing is told for a CPU."""

import os
from collections.abc import Iterator

import pytest
import torch

from ssl_fast.train.determinism import choose_kernels


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def told() -> tuple[bool, bool, str | None]:
    settings = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    return *settings, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_the_fastest_or_the_same_bits() -> None:
    choose_kernels(torch.device("cpu"), True)
    assert told() == (False, False, None)
    choose_kernels(torch.device("cuda"), False)
    assert told() == (False, True, None)
    choose_kernels(torch.device("cuda"), True)
    assert told() == (True, False, ":4096:8") and torch.is_deterministic_algorithms_warn_only_enabled()


def test_what_the_caller_has_said_stays() -> None:
    torch.use_deterministic_algorithms(True)
    choose_kernels(torch.device("cuda"), False)
    assert told() == (True, False, None) and not torch.is_deterministic_algorithms_warn_only_enabled()
