"""BYOL's distance and Sinkhorn's passes in the interpreter against plain torch in float64."""

import pytest
import torch
from torch import Tensor

from ssl_fast import byol_loss, sinkhorn
from ssl_fast.ops.reference import byol as byol_reference
from ssl_fast.ops.reference import sinkhorn as sinkhorn_reference
from ssl_fast.ops.triton import byol
from ssl_fast.ops.triton import sinkhorn as kernels
from tests.ops.towers import towers
from tests.ops.triton import literal
from tests.ops.triton.literal import DTYPES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize("normalize", [True, False])
def test_distance_keeps_its_digits(normalize: bool, alignment: float, dtype: torch.dtype) -> None:
    for shape in ((33, 20), (3, 600), (1, 1)):
        p, z = (t.detach().to(dtype) for t in towers(*shape, alignment))
        ours, plain = (module.forward(p, z, normalize, True) for module in (byol, byol_reference))
        exact = byol_reference.forward(p.double(), z.double(), normalize, True)
        for name, got, truth, low in zip(("distance", "dp"), ours, exact, plain, strict=True):
            assert got is not None and truth is not None and low is not None and got.dtype == torch.float32
            literal.check_rule(got, truth, low, name)


def test_zero_rows_no_rows_and_no_gradient() -> None:
    p, z = torch.zeros(2, 4), torch.ones(2, 4)
    distance, dp = byol.forward(p, z, True, True)
    assert distance.tolist() == [1, 1] and dp is not None and dp.isfinite().all()
    assert byol.forward(p[:0], z[:0], True, True)[1].shape == (0, 4)  # type: ignore[union-attr]
    assert byol.forward(p, z, True, False)[1] is None


def test_byol_of_strided_rows_and_a_second_derivative() -> None:
    base = torch.randn(7, 2, 10, generator=torch.Generator().manual_seed(0))
    p, z = base[:, 0, ::2].requires_grad_(), base[:, 1, 1::2]
    values = []
    for impl in ("triton", "reference"):
        value = byol_loss(p, z, impl=impl)
        (first,) = torch.autograd.grad(value, p, create_graph=True)
        values.append((value.detach(), first.detach(), *torch.autograd.grad(first.square().sum(), p)))
    torch.testing.assert_close(*values)


def logits_of(N: int, K: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(N + K)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(50, 40), (1, 5), (5, 1)], ids=str)
def test_sinkhorns_passes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    logits = logits_of(*shape, dtype)
    log_v = torch.randn(shape[1], generator=torch.Generator().manual_seed(1))
    for bias in (None, log_v):
        got, low = (m.column_logs(logits, 20.0, bias) for m in (kernels, sinkhorn_reference))
        truth = sinkhorn_reference.column_logs(logits.double(), 20.0, None if bias is None else bias.double())
        literal.check_rule(got, truth, low, f"column logs, {'not ' if bias is None else ''}scaled")
    got, low = (m.assignments(logits, 20.0, log_v) for m in (kernels, sinkhorn_reference))
    literal.check_rule(got, sinkhorn_reference.assignments(logits.double(), 20.0, log_v.double()), low, "assignments")


def test_sinkhorn_over_several_chunks_and_extreme_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = logits_of(50, 20)
    logits[3] -= 6
    monkeypatch.setattr(kernels, "_STRIP", 16)
    whole = sinkhorn(logits, impl="triton")
    torch.testing.assert_close(whole, sinkhorn(logits.double(), impl="reference").float(), rtol=2e-5, atol=1e-7)
    extreme = sinkhorn(logits * 100, impl="triton")
    assert extreme.isfinite().all() and (extreme.sum(1) - 1).abs().max() < 1e-5
    monkeypatch.setattr(kernels, "_CHUNK", 32 * 20)
    assert torch.equal(sinkhorn(logits, impl="triton"), whole)
    assert sinkhorn(logits[:0], impl="triton").shape == (0, 20)
    assert kernels.unavailable(torch.ones(2, 9000)) is None
