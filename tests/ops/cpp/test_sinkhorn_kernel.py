"""Sinkhorn-Knopp's passes in C++ on every instruction set, against the equation in float64."""

import pytest
import torch
from torch import Tensor

from ssl_fast.ops.cpp import sinkhorn as kernel
from ssl_fast.ops.reference import sinkhorn as reference

SHAPES = [(1, 1), (3, 16), (17, 15), (5, 1000), (100, 2049), (700, 33)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INV = 1 / 0.05


def drawn(shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines [N, K] and log v [K] of the size that they come to."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    return logits.to(dtype), torch.randn(shape[1], generator=generator, dtype=torch.float64) * 5 - 20


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_passes_are_the_equation(isa: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    logits, log_v = drawn(shape, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    log_v = log_v.to(wide)
    most = 1e-14 if dtype == torch.float64 else 2e-6
    for bias in (None, log_v):
        expected = reference.column_logs(logits.double(), INV, None if bias is None else bias.double())
        found = kernel.column_logs(logits, INV, bias)
        assert found.dtype == wide
        # Of the sums themselves: their logarithms may be near 0.
        assert relative((found.double() - expected).exp(), torch.ones_like(expected)) < most * 3
    q = kernel.assignments(logits, INV, log_v)
    assert q.dtype == wide and relative(q, reference.assignments(logits.double(), INV, log_v.double())) < most


@pytest.mark.parametrize("spread", [1.0, 50.0, 4000.0])
def test_sums_of_columns_far_apart_and_rising(isa: str, spread: float) -> None:
    """Each row exceeds what its column has seen, by more than an exponential holds, and columns differ by more."""
    rows, columns = torch.linspace(0, spread, 40)[:, None], torch.linspace(-spread, spread, 50)
    for logits in (rows + columns, columns - rows, (rows + columns)[torch.randperm(40)]):
        expected = reference.column_logs(logits.double(), 1.0, None)
        assert (kernel.column_logs(logits, 1.0, None).double() - expected).abs().max() < 1e-6 * (1 + 2 * spread)


@pytest.mark.usefixtures("threads")
def test_bits_do_not_depend_on_threads(isa: str) -> None:
    logits, log_v = drawn((333, 1500), torch.float32)
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        passes = [kernel.column_logs(logits, INV, bias) for bias in (None, log_v)]
        found.append([*passes, kernel.assignments(logits, INV, log_v)])
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


def test_nan_is_not_hidden_and_a_masked_logit_takes_no_part(isa: str) -> None:
    logits, log_v = drawn((6, 20), torch.float32)
    broken = logits.clone()
    broken[2, 3] = torch.nan
    assert kernel.column_logs(broken, INV, None).isnan().nonzero().tolist() == [[3]]
    assert kernel.column_logs(broken, INV, log_v).isnan().all()
    masked = logits.clone()
    masked[:, 7] = -torch.inf
    q = kernel.assignments(masked, INV, log_v)
    assert (q[:, 7] == 0).all() and (q.sum(1) - 1).abs().max() < 1e-5
    without = torch.cat((logits[:, :7], logits[:, 8:]), 1)
    kept = kernel.column_logs(masked, INV, None)
    assert kept[7] == -torch.inf
    torch.testing.assert_close(torch.cat((kept[:7], kept[8:])), kernel.column_logs(without, INV, None))


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_all_iterations_are_the_passes_one_after_the_other(isa: str, iterations: int) -> None:
    logits, _ = drawn((33, 70), torch.float32)
    logits[:, 7] = -torch.inf  # a prototype that no sample has
    log_v = kernel.column_logs(logits, INV, None).neg()
    log_v[7] = 0.0
    for _ in range(iterations - 1):
        log_v = -kernel.column_logs(logits, INV, log_v)
    found = kernel.balance(logits, INV, iterations)
    torch.testing.assert_close(found, log_v, rtol=0, atol=0, equal_nan=True)
