"""Sinkhorn-Knopp by scaling vectors against the papers' algorithm, and where that one overflows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_fast import sinkhorn
from ssl_fast.ops.sinkhorn import sinkhorn_reference

OP = "sinkhorn"


def logits_of(num_samples: int, num_prototypes: int, seed: int = 0) -> Tensor:
    return torch.randn(num_samples, num_prototypes, generator=torch.Generator().manual_seed(seed)).double()


def literal(logits: Tensor, epsilon: float, iterations: int) -> Tensor:
    """SwAV's pseudocode, line by line (Caron et al. 2020, Appendix A)."""
    Q = torch.exp(logits / epsilon).T
    Q /= torch.sum(Q)
    K, B = Q.shape
    r, c = torch.ones(K, dtype=Q.dtype) / K, torch.ones(B, dtype=Q.dtype) / B
    for _ in range(iterations):
        u = torch.sum(Q, dim=1)
        Q *= (r / u).unsqueeze(1)
        Q *= (c / torch.sum(Q, dim=0)).unsqueeze(0)
    return (Q / torch.sum(Q, dim=0, keepdim=True)).T


@pytest.mark.parametrize("shape", [(64, 30), (7, 100), (1, 5), (5, 1)], ids=str)
@pytest.mark.parametrize("iterations", [1, 2, 3, 20])
def test_the_papers_algorithm_in_float64(shape: tuple[int, int], iterations: int, impl: str) -> None:
    logits = logits_of(*shape)
    expected = literal(logits, 0.05, iterations)
    q = sinkhorn(logits, iterations=iterations, impl=impl)
    torch.testing.assert_close(q, expected, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(sinkhorn_reference(logits, iterations=iterations), expected, rtol=1e-11, atol=1e-14)


def test_lightlys_function(impl: str) -> None:
    swav = pytest.importorskip("lightly.loss.swav_loss", reason="lightly is not installed")
    logits = logits_of(40, 12).float()
    torch.testing.assert_close(sinkhorn(logits, impl=impl), swav.sinkhorn(logits), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_by_the_rule(dtype: torch.dtype, impl: str) -> None:
    rounded = (logits_of(50, 400) / 4).to(dtype)
    exact, q = sinkhorn_reference(rounded.double()), sinkhorn(rounded, impl=impl)
    error = lambda q: (q.double() - exact).norm() / exact.norm()  # noqa: E731
    assert error(q) <= 2 * error(sinkhorn_reference(rounded)) + 1e-6
    assert error(q) < 3e-6 and q.dtype == torch.float32


def test_rows_sum_to_one_and_columns_to_their_share() -> None:
    q = sinkhorn(logits_of(60, 20), temperature=0.5, iterations=300)
    torch.testing.assert_close(q.sum(1), torch.ones(60).double())
    torch.testing.assert_close(q.sum(0), torch.full((20,), 3.0).double())


def test_rows_and_columns_far_from_the_others(impl: str) -> None:
    """What a single global maximum loses in float32: rows 6 lower, logits in the hundreds, a lonely prototype."""
    logits = logits_of(30, 10)
    logits[3] -= 6
    logits[:, 4] -= 3
    expected = literal(logits, 0.05, 3)
    torch.testing.assert_close(sinkhorn(logits, impl=impl), expected, rtol=1e-10, atol=1e-14)
    assert (sinkhorn(logits.float(), impl=impl) - expected).abs().max() < 1e-5
    extreme = sinkhorn(logits.float() * 100, impl=impl)
    assert extreme.isfinite().all() and (extreme.sum(1) - 1).abs().max() < 1e-5


def test_a_shift_of_a_row_or_column_plays_no_part() -> None:
    logits = logits_of(30, 10)
    q = sinkhorn(logits, temperature=0.5, iterations=200)
    torch.testing.assert_close(sinkhorn(logits + 7, temperature=0.5, iterations=200), q)
    shifted = logits + torch.randn(10) + torch.randn(30, 1)
    torch.testing.assert_close(sinkhorn(shifted, temperature=0.5, iterations=400), q, rtol=1e-4, atol=1e-6)


def test_empty_strided_and_autocast(impl: str) -> None:
    logits = logits_of(50, 30).float().requires_grad_()
    q = sinkhorn(logits, impl=impl)
    assert not q.requires_grad
    assert torch.equal(sinkhorn(logits.T.contiguous().T, impl=impl), q)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn(logits, impl=impl), q)
    assert sinkhorn(logits[:0], impl=impl).shape == (0, 30)
    assert sinkhorn(logits[:, :0], impl=impl).shape == (50, 0)


def test_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = logits_of(50, 30).float()
    q = sinkhorn(logits, impl="reference")
    monkeypatch.setattr("ssl_fast.ops.reference.sinkhorn._CHUNK", 100)
    torch.testing.assert_close(sinkhorn(logits, impl="reference"), q)


def test_compiled_in_one_graph() -> None:
    torch._dynamo.reset()
    logits = logits_of(20, 10).float()
    compiled = torch.compile(sinkhorn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), sinkhorn(logits))


def test_the_registered_ops_keep_torchs_rules() -> None:
    logits, log_v = logits_of(6, 4).bfloat16(), torch.randn(4)
    for bias in (None, log_v):
        torch.library.opcheck(torch.ops.ssl_fast.sinkhorn_column_logs, (logits, bias, 20.0, "auto"))
    torch.library.opcheck(torch.ops.ssl_fast.sinkhorn_assignments, (logits, log_v, 20.0, "auto"))


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (torch.ones(3), {}, r"logits must be floating point of shape \[N, K\].*\[3\]"),
        (torch.ones(3, 2).int(), {}, "logits must be floating point.*int32"),
        (torch.ones(3, 2), {"temperature": 0}, "temperature must be positive, got 0"),
        (torch.ones(3, 2), {"iterations": 0}, "iterations must be at least 1, got 0"),
        (
            torch.ones(3, 2),
            {"impl": "cuda"},
            "impl of sinkhorn must be 'auto' or one of triton, cpp, reference, got 'cuda'",
        ),
    ],
)
def test_wrong_arguments_are_named(logits: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn(logits, **options)
