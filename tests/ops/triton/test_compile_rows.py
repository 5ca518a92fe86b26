"""The kernels of margin_softmax, byol and sinkhorn compiled for GPUs that need not be here."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssl_fast.ops.class_panels import Negatives
from ssl_fast.ops.triton import byol, margin_softmax, sinkhorn, tiles
from tests.ops.triton import compiling

pytest.importorskip("triton")

from tests.ops.triton.test_compile import _check

pytestmark = pytest.mark.skipif(tiles.interpreted(), reason="TRITON_INTERPRET=1: kernels cannot be compiled here")

_ARCHITECTURES = ["sm80", "sm90", "sm100"]
_KERNELS = {"class_sum_kernel", "class_weight_kernel", "unit_gradient_kernel"}


def _margin(dim: int, dtype: torch.dtype, centres: int, hard: bool, as_tensors: bool) -> Callable[[], object]:
    """64 rows against 300 classes: the kernels are the same at every size."""
    rows, numbers = torch.empty(64), (torch.ones(()), torch.ones(())) if as_tensors else (64.0, 0.3)
    x, weight = torch.empty(64, dim, dtype=dtype), torch.empty(300, centres, dim, dtype=dtype)
    negatives = Negatives(numbers[0], rows if hard else None, numbers[1])
    return lambda: margin_softmax.forward(x, weight, torch.zeros(64).long(), negatives, True, rows, rows, rows)


def _byol(dim: int, dtype: torch.dtype, normalize: bool) -> Callable[[], object]:
    p = torch.empty(64, dim, dtype=dtype)
    return lambda: byol.forward(p, p, normalize, True)


def _sinkhorn(num_prototypes: int, dtype: torch.dtype) -> list[Callable[[], object]]:
    logits, log_v = torch.empty(256, num_prototypes, dtype=dtype), torch.empty(num_prototypes)
    return [
        lambda: sinkhorn.column_logs(logits, 20.0, None),
        lambda: sinkhorn.column_logs(logits, 20.0, log_v),
        lambda: sinkhorn.assignments(logits, 20.0, log_v),
    ]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("arch", _ARCHITECTURES)
def test_usual_kernels(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.bfloat16
    calls = [_margin(512, half, 1, False, False), _byol(256, torch.float32, True), *_sinkhorn(3000, torch.float32)]
    names = set()
    for call in calls:
        names |= _check(compiling.record(call, arch, monkeypatch), arch)
    assert names == _KERNELS | {"distance_kernel", "column_kernel", "assignment_kernel", "normaliser_kernel"}


@pytest.mark.nightly
@pytest.mark.parametrize("arch", [*_ARCHITECTURES, "sm86"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [1, 64, 100, 512, 2048, 8192])
def test_every_length_of_rows(arch: str, dtype: torch.dtype, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (_byol(dim, dtype, True), _byol(dim, dtype, False), _margin(dim, dtype, 1, False, True)):
        _check(compiling.record(call, arch, monkeypatch), arch)


@pytest.mark.nightly
@pytest.mark.parametrize("arch", [*_ARCHITECTURES, "sm86"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("centres", [1, 3, 20])
def test_every_kind_of_margin(arch: str, dtype: torch.dtype, centres: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for hard, as_tensors in ((True, False), (True, True), (False, False)):
        call = _margin(128, dtype, centres, hard, as_tensors)
        launches = compiling.record(call, arch, monkeypatch)
        assert _check(launches, arch) == _KERNELS


@pytest.mark.nightly
@pytest.mark.parametrize("arch", [*_ARCHITECTURES, "sm86"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_prototypes", [7, 3000, 65536])
def test_every_kind_of_logits(
    arch: str, dtype: torch.dtype, num_prototypes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in _sinkhorn(num_prototypes, dtype):
        _check(compiling.record(call, arch, monkeypatch), arch)
