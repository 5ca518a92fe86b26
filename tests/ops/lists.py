"""What the tests of multi-tensor ops share: tensors of many shapes and layouts, and how close is close."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from ssl_fast.ops import dispatch

SHAPES = [(), (1,), (7,), (40_000,), (0,), (3, 0), (33, 65), (16, 8, 3, 3), (16, 8, 1, 1)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {
    "contiguous": lambda t: t.clone(),
    "channels_last": lambda t: t.clone(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "slice": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "expanded": lambda t: t[:1].expand_as(t),
}


def available(op: str, impl: str) -> str:
    """The implementation's name; skips the test where it cannot run."""
    try:
        dispatch.choose(op, impl, torch.zeros(1))
    except RuntimeError as error:
        pytest.skip(str(error))
    return impl


def draw(dtype: torch.dtype, seed: int, scale: float = 1.0, shapes: list[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(s, generator=generator, dtype=torch.float64) * scale).to(dtype) for s in shapes]


def like(params: list[Tensor], seed: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> list[Tensor]:
    """Random tensors laid out as the parameters."""
    drawn = draw(torch.float64, seed, scale, [tuple(p.shape) for p in params])
    return [torch.empty_like(p, dtype=dtype or p.dtype).copy_(t) for p, t in zip(params, drawn, strict=True)]


def assert_within_rounding(results: list[Tensor], exact: list[Tensor], times: float = 4.0) -> None:
    """Errors in units of the result's rounding; terms of size 1 may cancel, so a result below 1 counts as 1."""
    for result, wanted in zip(results, exact, strict=True):
        if result.numel():
            allowed = times * torch.finfo(result.dtype).eps * max(wanted.abs().max().item(), 1.0)
            worst = (result.double() - wanted).abs().max().item()
            assert worst <= allowed, f"{worst:.2e} against {allowed:.2e}"


@contextmanager
def every_isa_and_thread_count() -> Iterator[Iterator[tuple[str, int]]]:
    """Pairs of instruction set and threads, each set before it is given; what was set before comes back."""
    _cpu = pytest.importorskip("ssl_fast._cpu", reason="the C++ module was not built")
    before = torch.get_num_threads(), _cpu.isa()

    def pairs() -> Iterator[tuple[str, int]]:
        for isa in ("generic", "avx2", "avx512"):
            try:
                _cpu.set_isa(isa)
            except ValueError:
                continue
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                yield isa, threads

    try:
        yield pairs()
    finally:
        torch.set_num_threads(before[0])
        _cpu.set_isa(before[1])
