"""The row kernels of prototypes and prototype_logits compiled for GPUs that need not be here."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssl_fast.ops.triton import prototype_logits, tiles
from tests.ops.triton import compiling

pytest.importorskip("triton")

from tests.ops.triton.test_compile import _check

pytestmark = pytest.mark.skipif(tiles.interpreted(), reason="TRITON_INTERPRET=1: kernels cannot be compiled here")

_ARCHITECTURES = ["sm80", "sm90", "sm100"]


def _call(
    dtype: torch.dtype, num_prototypes: int, with_bias: bool, skip_same: bool, with_grad: bool
) -> Callable[[], object]:
    student, teacher = torch.empty(10, 2, num_prototypes, dtype=dtype), torch.empty(2, 2, num_prototypes, dtype=dtype)
    bias, coef = torch.empty(2, num_prototypes) if with_bias else None, torch.empty(2)
    settings = (10.0, 25.0, skip_same, with_grad)
    return lambda: prototype_logits.forward(student, teacher, bias, coef, *settings, grad_dtype=dtype)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("arch", _ARCHITECTURES)
def test_usual_kernels(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = _call(torch.float32, 65536, with_bias=True, skip_same=True, with_grad=True)
    assert _check(compiling.record(call, arch, monkeypatch), arch) == {"normaliser_kernel", "loss_kernel"}


@pytest.mark.nightly
@pytest.mark.parametrize("arch", [*_ARCHITECTURES, "sm86"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_prototypes", [1000, 4099, 131072])
def test_every_kind(arch: str, dtype: torch.dtype, num_prototypes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ((True, True, False), (False, False, True), (False, True, True)):
        _check(compiling.record(_call(dtype, num_prototypes, *kind), arch, monkeypatch), arch)
