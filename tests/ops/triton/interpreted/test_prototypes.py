"""The Triton kernels between the products of dino_loss in the interpreter, against the reference in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import dino_loss, swav_loss
from ssl_fast.ops.reference import prototypes as reference
from ssl_fast.ops.triton import prototypes
from tests.ops.triton import literal
from tests.ops.triton.literal import DTYPES


def inputs(S: int, T: int, N: int, K: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(N)
    shapes = ((S, N, D), (K, D), (T, N, D), (K, D))
    return [F.normalize(torch.randn(*s, generator=generator), dim=-1).to(dtype) for s in shapes]


def check(tensors: list[Tensor], bias: Tensor | None, coef: Tensor, skip_same: bool = True, inv: float = 25.0) -> None:
    rest = (0.4 * inv, inv, skip_same, True, True)
    ours = prototypes.forward(*tensors, bias, coef, *rest)
    exact = reference.forward(*(t.double() for t in tensors), None if bias is None else bias.double(), coef, *rest)
    low = reference.forward(*tensors, bias, coef, *rest)
    for name, got, truth, plain in zip(("loss", "dstudent", "dweight"), ours, exact, low, strict=True):
        assert got is not None and truth is not None and plain is not None and got.dtype == torch.float32
        literal.check_rule(got, truth, plain, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 2, 9, 100, 32), (5, 2, 3, 33, 17), (1, 1, 4, 1, 3)], ids=str)
def test_matches_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    coef = torch.rand(shape[2], generator=torch.Generator().manual_seed(0))
    bias = torch.randn(shape[1], shape[3], generator=torch.Generator().manual_seed(1))
    check(inputs(*shape, dtype), bias, coef, skip_same=shape[0] > 1)
    check(inputs(*shape, dtype), None, coef, skip_same=False)


def test_several_blocks_and_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, coef = inputs(3, 2, 7, 2100, 8, torch.float32), torch.rand(7)
    check(tensors, None, coef)
    monkeypatch.setattr(prototypes, "_PANEL", 30000)
    check(tensors, None, coef)


def test_large_logits() -> None:
    tensors = [t * 20 for t in inputs(2, 2, 5, 60, 16, torch.float32)]
    loss, dstudent, dweight = prototypes.forward(*tensors, None, torch.ones(5), 10.0, 25.0, True, True, True)
    exact = reference.forward(*(t.double() for t in tensors), None, torch.ones(5), 10.0, 25.0, True, True, True)
    for got, truth in zip((loss, dstudent, dweight), exact, strict=True):
        assert got is not None and truth is not None and got.isfinite().all()
        assert (got - truth).norm() < 2e-3 * truth.norm()  # logits of 10^4, rounded in float32


@pytest.mark.parametrize("bias", [None, torch.linspace(-3, 3, 40)])
def test_log_sums(bias: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, terms, _, columns = inputs(2, 2, 5, 40, 16, torch.float32)
    expected = reference.log_sums(terms.double(), columns.double(), bias, 20.0)
    monkeypatch.setattr(prototypes, "_PANEL", 300)
    torch.testing.assert_close(prototypes.log_sums(terms, columns, bias, 20.0).double(), expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("rows", [True, False])
def test_ops_equal_the_reference(rows: bool, reduction: str) -> None:
    results = []
    for impl in ("triton", "reference"):
        z, w, y, wt = inputs(3, 2, 6, 50, 12, torch.float32)
        z, w = z.requires_grad_(), w.requires_grad_()
        given = (z, y, w, wt) if rows else (z @ w.T, y @ wt.T)
        value = dino_loss(*given, center="sinkhorn", reduction=reduction, impl=impl).square().sum()
        value = value + swav_loss(z if rows else z @ w.T, w if rows else None, reduction=reduction, impl=impl).sum()
        results.append((value.detach(), *torch.autograd.grad(value, (z, w))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=5e-5, atol=5e-6)


def test_nobody() -> None:
    z, w, y, wt = inputs(2, 2, 4, 10, 8, torch.float32)
    loss, dz, dw = prototypes.forward(z[:, :0], w, y[:, :0], wt, None, torch.ones(0), 10.0, 25.0, True, True, True)
    assert loss.shape == (0,) and dz is not None and dz.shape == (2, 0, 8) and dw is not None and not dw.any()
