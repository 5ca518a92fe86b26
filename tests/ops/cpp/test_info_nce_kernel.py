"""The C++ kernel of InfoNCE against the literal formula in float64, for every instruction set this processor has."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.cpp import info_nce


def literal(q: Tensor, k: Tensor, queue: Tensor, inv_temperature: float, normalize: bool) -> tuple[Tensor, ...]:
    """loss [B], dq, dk and d loss_i / d inv_temperature, in float64."""
    q, k = q.double().requires_grad_(), k.double().requires_grad_()
    scale = torch.full((len(q), 1), inv_temperature, dtype=torch.float64, requires_grad=True)
    unit_q, unit_k = (F.normalize(v, dim=1, eps=1e-12) if normalize else v for v in (q, k))
    positive = (unit_q * unit_k).sum(1, keepdim=True) * scale
    negative = (unit_q @ queue.double().T * scale).logsumexp(1, keepdim=True)
    loss = torch.logaddexp(negative - positive, torch.zeros_like(positive)).squeeze(1)
    return loss.detach(), *(grad.squeeze(1) for grad in torch.autograd.grad(loss.sum(), (q, k, scale)))


def tensors(B: int, K: int, D: int, noise: float = 0.7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(B * K + D)
    q, k = (torch.randn(B, D, generator=random, dtype=torch.float64) for _ in range(2))
    queue = F.normalize(torch.randn(K, D, generator=random, dtype=torch.float64), dim=1)
    return q.to(dtype), (q * (1 - noise) + k * noise).to(dtype), queue


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


EPS = {torch.float32: 5e-6, torch.bfloat16: 5e-6, torch.float16: 5e-6, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", list(EPS), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("queue_dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("B", "K", "D"), [(1, 1, 2), (3, 7, 5), (33, 900, 17), (193, 385, 64), (256, 4000, 128)])
@pytest.mark.parametrize("inv_temperature", [2.0, 14.0, 60.0], ids=lambda value: f"{value:g}")
def test_literal(
    isa: str, dtype: torch.dtype, queue_dtype: torch.dtype, B: int, K: int, D: int, inv_temperature: float
) -> None:
    q, k, queue = tensors(B, K, D, dtype=dtype)
    queue = queue.to(queue_dtype)
    expected = literal(q, k, queue, inv_temperature, True)
    found = info_nce.forward(q, k, queue, inv_temperature, True, True)
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for a, b in zip(found, expected, strict=True):
        assert a is not None and a.shape == b.shape
        assert error(a, b) < EPS[dtype] * max(1.0, inv_temperature / 14)


@pytest.mark.parametrize("noise", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("inv_temperature", [14.0, 100.0], ids=lambda value: f"{value:g}")
def test_aligned_views(isa: str, noise: float, inv_temperature: float) -> None:
    q, k, queue = tensors(64, 3000, 128, noise)
    queue = queue.float()
    for a, b in zip(
        info_nce.forward(q, k, queue, inv_temperature, True, True),
        literal(q, k, queue, inv_temperature, True),
        strict=True,
    ):
        assert a is not None and error(a, b) < 2e-6 * inv_temperature


def test_rows_that_are_no_unit_vectors(isa: str) -> None:
    """A caller who says normalize=False, or a queue of long rows, gets the formula and no overflow."""
    q, k, queue = tensors(40, 2000, 32, dtype=torch.float64)
    queue = queue * torch.linspace(1, 30, 2000)[:, None]  # ever higher logits: the offset has to follow
    expected = literal(q * 3, k * 3, queue, 14.0, False)
    for a, b in zip(
        info_nce.forward((q * 3).float(), (k * 3).float(), queue.float(), 14.0, False, True), expected, strict=True
    ):
        assert a is not None and a.isfinite().all() and error(a, b) < 2e-3  # logits up to 10^4, rounded in float32
    exact = info_nce.forward(q * 3, k * 3, queue, 14.0, False, True)
    assert all(a is not None and error(a, b) < 1e-10 for a, b in zip(exact, expected, strict=True))


def test_zero_and_non_finite_rows(isa: str) -> None:
    q, k, queue = tensors(8, 500, 16)
    queue = queue.float()
    q[1], k[2] = 0, 0
    loss, dq, dk, dinv = info_nce.forward(q, k, queue, 14.0, True, True)
    expected = literal(q, k, queue, 14.0, True)
    assert dq is not None and dk is not None and dinv is not None
    assert dq.isfinite().all() and dk.isfinite().all()
    assert error(loss, expected[0]) < 5e-6 and error(dq, expected[1]) < 5e-6 and error(dk, expected[2]) < 5e-6
    q[3, 0] = torch.nan
    loss = info_nce.forward(q, k, queue, 14.0, True, False)[0]
    assert loss[3].isnan() and loss[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()


def test_empty_queue_and_no_gradients(isa: str) -> None:
    q, k, queue = tensors(5, 300, 16)
    with_grad = info_nce.forward(q, k, queue.float(), 14.0, True, True)
    without = info_nce.forward(q, k, queue.float(), 14.0, True, False)
    assert torch.equal(without[0], with_grad[0]) and without[1:] == (None, None, None)
    loss, dq, dk, dinv = info_nce.forward(q, k, queue[:0].float(), 14.0, True, True)
    for value in (loss, dq, dk, dinv):
        assert value is not None and value.count_nonzero() == 0


def test_bits_do_not_depend_on_threads(threads: None) -> None:
    q, k, queue = tensors(200, 9000, 64)
    queue = queue.bfloat16()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(info_nce.forward(q, k, queue, 14.0, True, True))
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert a is not None and b is not None and torch.equal(a, b)


def test_survives_fork(threads: None) -> None:
    torch.set_num_threads(2)
    q, k, queue = tensors(64, 4000, 64)
    queue = queue.float()
    expected = info_nce.forward(q, k, queue, 14.0, True, False)[0]
    child = os.fork()  # in the child only our kernel runs: torch's own OpenMP threads do not survive a fork
    if child == 0:
        os._exit(0 if torch.equal(info_nce.forward(q, k, queue, 14.0, True, False)[0], expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
