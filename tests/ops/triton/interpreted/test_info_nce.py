"""The Triton kernels of info_nce in the interpreter against the formula in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.triton import info_nce, tiles
from tests.ops.triton import literal
from tests.ops.triton.literal import DTYPES


def inputs(
    batch: int, length: int, dim: int, dtype: torch.dtype, queue_dtype: torch.dtype, aligned: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    x, _, _ = literal.views(batch, dim, aligned, dtype)
    queue = F.normalize(torch.randn(length, dim, generator=torch.Generator().manual_seed(1)), dim=1)
    return x[:batch], x[batch:], queue.to(queue_dtype)


def run(q: Tensor, k: Tensor, queue: Tensor, inv: float | Tensor, normalize: bool = True) -> dict[str, Tensor | None]:
    return dict(zip(("loss", "dq", "dk", "dinv"), info_nce.forward(q, k, queue, inv, normalize, True), strict=True))


def check(q: Tensor, k: Tensor, queue: Tensor, inv: float, normalize: bool = True) -> None:
    ours = run(q, k, queue, inv, normalize)
    exact = literal.info_nce(q.double(), k.double(), queue.double(), inv, normalize)
    reference = literal.info_nce(q, k, queue, inv, normalize)
    for name, value in exact.items():
        literal.check_rule(ours[name], value, reference[name], name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queue_dtype", [torch.bfloat16, torch.float32])
def test_matches_formula(dtype: torch.dtype, queue_dtype: torch.dtype) -> None:
    check(*inputs(20, 100, 128, dtype, queue_dtype), 1 / 0.07)


@pytest.mark.parametrize(("batch", "length", "dim"), [(1, 100, 17), (70, 33, 1), (5, 1, 200), (9, 70, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_size(batch: int, length: int, dim: int, dtype: torch.dtype) -> None:
    check(*inputs(batch, length, dim, dtype, torch.bfloat16), 10.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_take_the_online_maximum(dtype: torch.dtype) -> None:
    check(*inputs(20, 150, 32, dtype, torch.bfloat16), 100.0)


def test_rows_as_they_are() -> None:
    q, k, queue = inputs(20, 150, 32, torch.float32, torch.float32)
    check(q * 12, k * 12, queue * 12, 2.0, normalize=False)


def test_temperature_on_the_device() -> None:
    q, k, queue = inputs(20, 150, 32, torch.float32, torch.bfloat16)
    fixed, online = run(q, k, queue, 10.0), run(q, k, queue, torch.tensor(10.0))
    for name, value in fixed.items():
        torch.testing.assert_close(online[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inv_temperature", [10.0, 60.0])
def test_split_queue(inv_temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, queue = inputs(20, 200, 32, torch.float32, torch.bfloat16)
    whole = run(q, k, queue, inv_temperature)
    monkeypatch.setattr(tiles, "num_processors", lambda device: 7)
    for name, value in run(q, k, queue, inv_temperature).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_aligned_views(dtype: torch.dtype) -> None:
    q, k, queue = inputs(20, 150, 64, dtype, torch.bfloat16, aligned=0.9)
    check(q, k, queue, 20.0)
    exact = literal.info_nce(q.double(), k.double(), queue.double(), 20.0, True)["dq"]
    error = (run(q, k, queue, 20.0)["dq"].double() - exact).norm() / exact.norm()
    assert error < {torch.float32: 5e-6, torch.bfloat16: 6e-3}[dtype]


def test_loss_alone() -> None:
    q, k, queue = inputs(20, 150, 32, torch.float32, torch.bfloat16)
    loss, *gradients = info_nce.forward(q, k, queue, 10.0, True, False)
    assert gradients == [None, None, None]
    assert torch.equal(loss, run(q, k, queue, 10.0)["loss"])


def test_zero_rows_are_finite() -> None:
    q, k, queue = inputs(8, 40, 16, torch.float32, torch.bfloat16)
    q[2], k[3], queue[5] = 0.0, 0.0, 0.0
    exact = literal.info_nce(q.double(), k.double(), queue.double(), 10.0, True)
    for name, value in run(q, k, queue, 10.0).items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-4, atol=1e-6)


def test_empty_queue_and_empty_batch() -> None:
    q, k, queue = inputs(4, 10, 16, torch.float32, torch.bfloat16)
    for inv_temperature in (10.0, 100.0):
        alone = run(q, k, queue[:0], inv_temperature)
        assert all(not value.any() for value in alone.values())
    nobody = run(q[:0], k[:0], queue, 10.0)
    assert nobody["loss"].shape == (0,) and nobody["dq"].shape == (0, 16)


def test_overflowing_queue_is_loud() -> None:
    q, k, queue = inputs(4, 10, 16, torch.float32, torch.bfloat16)
    queue[0] = 100 * F.normalize(q[:1], dim=1).to(queue.dtype)
    assert run(q, k, queue, 20.0)["loss"][0].isinf()
