"""The Triton kernels of nt_xent in the interpreter against the formula in float64."""

import pytest
import torch
from torch import Tensor

from ssl_fast.ops.triton import nt_xent, tiles
from tests.ops.triton import literal
from tests.ops.triton.literal import DTYPES


def run(
    x: Tensor,
    positive: Tensor,
    coef: Tensor,
    inv_temperature: float | Tensor,
    normalize: bool = True,
    rows: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """What the kernels say about `rows` (all of them by default)."""
    rows = rows or (0, len(x))
    loss, log_l = nt_xent.forward(x, positive, rows, inv_temperature, normalize)
    all_log_l = (
        log_l if rows == (0, len(x)) else nt_xent.forward(x, positive, (0, len(x)), inv_temperature, normalize)[1]
    )
    dx, zdz = nt_xent.backward(x, positive, coef, all_log_l, rows, inv_temperature, normalize)
    return {"loss": loss, "log_l": log_l, "dx": dx, "dinv": zdz / (2 * inv_temperature)}


def check(
    ours: dict[str, Tensor], x: Tensor, positive: Tensor, coef: Tensor, inv: float, normalize: bool = True
) -> None:
    exact = literal.nt_xent(x.double(), positive, coef, inv, normalize)
    reference = literal.nt_xent(x, positive, coef, inv, normalize)
    for name in ("loss", "log_l", "dx"):
        literal.check_rule(ours[name], exact[name], reference[name], name)
    # A sum of terms of both signs, each as good as its rounding.
    error = (ours["dinv"].double().sum() - exact["dinv"]).abs()
    allowed = 2 * (reference["dinv"].double() - exact["dinv"]).abs()
    assert error <= allowed + 8 * torch.finfo(x.dtype).eps * ours["dinv"].abs().sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("pairs", "dim"), [(49, 17), (20, 128), (17, 200), (9, 1)])
def test_matches_formula(dtype: torch.dtype, pairs: int, dim: int) -> None:
    x, positive, coef = literal.views(pairs, dim, 0.5, dtype)
    check(run(x, positive, coef, 10.0), x, positive, coef, 10.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("aligned", "temperature"), [(0.0, 0.05), (0.9, 0.05), (0.7, 0.07)])
def test_aligned_views(dtype: torch.dtype, aligned: float, temperature: float) -> None:
    x, positive, coef = literal.views(32, 64, aligned, dtype)
    ours = run(x, positive, coef, 1 / temperature)
    check(ours, x, positive, coef, 1 / temperature)
    exact = literal.nt_xent(x.double(), positive, coef, 1 / temperature, True)["dx"]
    error = (ours["dx"].double() - exact).norm() / exact.norm()
    assert error < {torch.float32: 5e-6, torch.bfloat16: 6e-3}[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_take_the_online_maximum(dtype: torch.dtype) -> None:
    x, positive, coef = literal.views(40, 32, 0.5, dtype)
    assert not tiles.bounded(100.0, True)
    check(run(x, positive, coef, 100.0), x, positive, coef, 100.0)


def test_rows_as_they_are() -> None:
    x, positive, coef = literal.views(33, 32, 0.5, torch.float32)
    x = x * 12.0  # logits of several hundred
    check(run(x, positive, coef, 2.0, normalize=False), x, positive, coef, 2.0, normalize=False)


def test_temperature_on_the_device() -> None:
    x, positive, coef = literal.views(33, 32, 0.5, torch.float32)
    check(run(x, positive, coef, torch.tensor(10.0)), x, positive, coef, 10.0)


@pytest.mark.parametrize("inv_temperature", [10.0, 60.0])
def test_some_rows(inv_temperature: float) -> None:
    x, positive, coef = literal.views(50, 24, 0.5, torch.float32)
    exact = literal.nt_xent(x.double(), positive, coef, inv_temperature, True)
    ours = run(x, positive, coef, inv_temperature, rows=(37, 98))
    for name in ("loss", "log_l", "dx"):
        torch.testing.assert_close(ours[name].double(), exact[name][37:98], rtol=2e-5, atol=2e-6)


def test_no_rows() -> None:
    x, positive, coef = literal.views(4, 8, 0.5, torch.float32)
    ours = run(x, positive, coef, 10.0, rows=(3, 3))
    assert ours["loss"].shape == (0,) and ours["dx"].shape == (0, 8)


@pytest.mark.parametrize("inv_temperature", [10.0, 60.0])
def test_split_columns(inv_temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, positive, coef = literal.views(50, 16, 0.5, torch.float32)
    whole = run(x, positive, coef, inv_temperature, rows=(0, 99))
    monkeypatch.setattr(tiles, "num_processors", lambda device: 7)
    parts = run(x, positive, coef, inv_temperature, rows=(0, 99))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)


def test_slabs_of_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    x, positive, coef = literal.views(120, 16, 0.5, torch.float32)
    monkeypatch.setattr(nt_xent, "SLABS", 2)
    check(run(x, positive, coef, 10.0), x, positive, coef, 10.0)


def test_wide_rows_in_chunks() -> None:
    for dim, dtype in ((300, torch.bfloat16), (200, torch.float32)):
        x, positive, coef = literal.views(20, dim, 0.5, dtype)
        check(run(x, positive, coef, 10.0), x, positive, coef, 10.0)
        check(run(x, positive, coef, 90.0), x, positive, coef, 90.0)


@pytest.mark.parametrize(("precision", "bound"), [("highest", 2e-6), ("high", 2e-5), ("medium", 5e-3)])
def test_float32_keeps_what_torch_is_told(precision: str, bound: float) -> None:
    x, positive, coef = literal.views(40, 64, 0.5, torch.float32)
    exact = literal.nt_xent(x.double(), positive, coef, 10.0, True)["dx"]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        dx = run(x, positive, coef, 10.0)["dx"]
    finally:
        torch.set_float32_matmul_precision(before)
    assert (dx.double() - exact).norm() / exact.norm() < bound


def test_zero_rows_are_finite() -> None:
    x, positive, coef = literal.views(20, 16, 0.5, torch.float32)
    x[3] = x[23] = x[30] = 0.0
    ours = run(x, positive, coef, 10.0)
    assert all(value.isfinite().all() for value in ours.values())
    exact = literal.nt_xent(x.double(), positive, coef, 10.0, True)
    torch.testing.assert_close(ours["loss"].double(), exact["loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours["dx"].double(), exact["dx"], rtol=1e-4, atol=1e-6)


def test_identical_rows() -> None:
    x = torch.ones(50, 24)
    loss, log_l = nt_xent.forward(x, torch.arange(50).roll(25), (0, 50), 10.0, True)
    torch.testing.assert_close(loss, torch.full((50,), 49.0).log())
    torch.testing.assert_close(log_l, torch.full((50,), 49.0).log() + 10.0)


def test_two_rows_have_no_negative() -> None:
    ours = run(torch.randn(2, 8), torch.tensor([1, 0]), torch.ones(2), 10.0)
    assert not ours["loss"].any() and not ours["dx"].any()


def test_nan_is_not_hidden() -> None:
    for inv_temperature in (10.0, 100.0):
        x, positive, _ = literal.views(20, 16, 0.5, torch.float32)
        x[7, 2] = torch.nan
        loss, _ = nt_xent.forward(x, positive, (0, 40), inv_temperature, True)
        assert loss[7].isnan() and loss.mean().isnan()


def test_not_contiguous() -> None:
    x, positive, coef = literal.views(33, 20, 0.5, torch.float32)
    spread = torch.stack((x, x), 2)[..., 0]
    assert not spread.is_contiguous()
    assert torch.equal(run(spread, positive, coef, 10.0)["dx"], run(x, positive, coef, 10.0)["dx"])
