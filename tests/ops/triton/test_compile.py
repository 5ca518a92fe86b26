"""Every kernel, as it would be launched, compiled for GPUs that need not be here: no spills, enough shared memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssl_fast.ops.classes import Classes
from ssl_fast.ops.triton import clip_loss, info_nce, nt_xent, siglip_loss, tile_table, tiles
from tests.ops.triton import compiling

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(tiles.interpreted(), reason="TRITON_INTERPRET=1: kernels cannot be compiled here")

_MMA = {"triangle_kernel", "row_sum_kernel", "backward_kernel", "queue_kernel"}
_ARCHITECTURES = ["sm80", "sm90", "sm100"]


def _calls(dim: int, dtype: torch.dtype, queue_dtype: torch.dtype, fixed: bool) -> dict[str, Callable[[], object]]:
    """The calls of all ops at 8,192 rows and a queue of 65,536, with a temperature of the host or the device."""
    x, coef = torch.empty(8192, dim, dtype=dtype), torch.empty(8192)
    positive, inv = torch.arange(8192).roll(4096), 10.0 if fixed else torch.empty(())
    classes = Classes.of(torch.arange(8192) % 1000)
    q, queue = torch.empty(256, dim, dtype=dtype), torch.empty(65536, dim, dtype=queue_dtype)
    return {
        "all rows": lambda: nt_xent.forward(x, positive, (0, 8192), inv, True),
        "some rows": lambda: nt_xent.forward(x, positive, (0, 4096), inv, True),
        "backward": lambda: nt_xent.backward(x, positive, coef, coef, (0, 8192), inv, True),
        "classes": lambda: nt_xent.forward(x, positive, (0, 8192), inv, True, classes),
        "backward of classes": lambda: nt_xent.backward(x, positive, coef, coef, (0, 8192), inv, True, classes),
        "backward of dcl": lambda: nt_xent.backward(x, positive, coef, coef, (0, 8192), inv, True, None, True),
        "queue": lambda: info_nce.forward(q, q, queue, inv, True, True),
    }


def _check(launches: list[compiling.Launch], arch: str) -> set[str]:
    """Compiles each; the names of the kernels."""
    names = set()
    for launch in launches:
        kernel = compiling.compiled(launch, arch)
        name, used = launch[0].__name__, compiling.resources(kernel)
        names.add(name)
        assert used["stack"] == used["local"] == 0, f"{name} spills on {arch}: {used}"
        assert used["static"] + kernel.metadata.shared <= tile_table.SHARED_MEMORY[arch], f"{name} on {arch}"
        if name in _MMA:
            instruction = {"sm90": "wgmma.mma_async", "sm100": "tcgen05.mma"}.get(arch, "mma.sync")
            assert instruction in kernel.asm["ptx"], f"{name} has no {instruction} on {arch}"
    return names


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("arch", _ARCHITECTURES)
def test_usual_kernels(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, online = (_calls(128, torch.bfloat16, torch.bfloat16, kind) for kind in (True, False))
    chosen = (fixed["all rows"], online["some rows"], online["backward"], fixed["queue"])
    names = _check([launch for call in chosen for launch in compiling.record(call, arch, monkeypatch)], arch)
    assert names >= _MMA | {"normalize_kernel", "loss_kernel", "finish_kernel", "combine_kernel"}


@pytest.mark.parametrize("arch", ["sm90", *(pytest.param(a, marks=pytest.mark.nightly) for a in ("sm80", "sm100"))])
def test_kernels_of_classes(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = _calls(128, torch.bfloat16, torch.bfloat16, True)
    chosen = (fixed["classes"], fixed["backward of classes"])
    launches = [launch for call in chosen for launch in compiling.record(call, arch, monkeypatch)]
    wanted = {"row_sum_kernel", "loss_kernel", "backward_kernel"}
    assert _check([launch for launch in launches if launch[0].__name__ in wanted], arch) == wanted


@pytest.mark.nightly
@pytest.mark.parametrize("arch", [*_ARCHITECTURES, "sm86"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [64, 100, 256, 512])
def test_every_tile(arch: str, dtype: torch.dtype, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for queue_dtype, fixed in ((torch.bfloat16, True), (torch.float32, False)):
        for call in _calls(dim, dtype, queue_dtype, fixed).values():
            launches = compiling.record(call, arch, monkeypatch)
            _check([launch for launch in launches if launch[0].__name__ in _MMA], arch)


@pytest.mark.nightly
@pytest.mark.parametrize("arch", _ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [1, 1024])
def test_every_kernel_around_the_products(
    arch: str, dtype: torch.dtype, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for fixed in (True, False):
        for call in _calls(dim, dtype, dtype, fixed).values():
            launches = compiling.record(call, arch, monkeypatch)
            names |= _check([launch for launch in launches if launch[0].__name__ not in _MMA], arch)
    assert names == {"normalize_kernel", "loss_kernel", "weight_kernel", "finish_kernel", "combine_kernel"}


def _towers(dtype: torch.dtype, with_numbers: bool, rows: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """The calls of the losses over two towers at 64 pairs: their kernels are the same at every size."""
    image, coef, log_l = torch.empty(64, 512, dtype=dtype), torch.empty(2, 64), torch.empty(2, 64, dtype=torch.float64)
    scale, bias = (torch.ones(()), torch.ones(())) if with_numbers else (10.0, -10.0)
    return {
        "clip": lambda: clip_loss.forward(image, image, rows, scale, True, 2),
        "backward of clip": lambda: clip_loss.backward(image, image, coef, log_l, rows, scale, True),
        "one direction": lambda: clip_loss.backward(image, image, coef[:1], log_l[:1], rows, scale, True),
        "siglip": lambda: siglip_loss.forward(image, image, coef[0], rows, scale, bias, True),
        "siglip alone": lambda: siglip_loss.forward(image, image, None, rows, scale, bias, True),
    }


@pytest.mark.parametrize("arch", _ARCHITECTURES)
def test_kernels_between_products(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, names = _towers(torch.bfloat16, True, (0, 64)), set()
    for call in ("clip", "backward of clip", "siglip"):
        names |= _check(compiling.record(calls[call], arch, monkeypatch), arch)
    assert names == {"online_sum_kernel", "softmax_weight_kernel", "sigmoid_weight_kernel"}


@pytest.mark.nightly
@pytest.mark.parametrize("arch", [*_ARCHITECTURES, "sm86"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_kernel_between_products(arch: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for with_numbers, rows in ((True, (0, 64)), (False, (16, 48))):
        for call in _towers(dtype, with_numbers, rows).values():
            _check(compiling.record(call, arch, monkeypatch), arch)
