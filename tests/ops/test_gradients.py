"""Global norm, clipping and centralisation: every implementation against float64, on every layout and dtype."""

import pytest
import torch
from torch import Tensor, nn

from ssl_fast.ops.gradients import centralize_gradients_, clip_grad_norm_, global_norm
from tests.ops.lists import DTYPES, LAYOUTS, assert_within_rounding, available, draw, every_isa_and_thread_count


@pytest.fixture(params=["reference", "cpp"])
def impl(request: pytest.FixtureRequest) -> str:
    return available("gradients", request.param)


def centralized(g: Tensor) -> Tensor:
    """Equation 1 of Yong et al. 2020 in float64, row by row."""
    wide = g.double()
    if g.ndim < 2 or g.numel() == 0:
        return wide
    return torch.stack([row - row.mean() for row in wide])


def parameters_with(grads: list[Tensor]) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    return params


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_norm_is_that_of_one_long_vector(impl: str, dtype: torch.dtype, weighted: bool) -> None:
    grads, weights = draw(dtype, 1), draw(dtype, 2) if weighted else None
    flat = torch.cat([g.double().flatten() for g in grads])
    if weights is not None:
        flat *= torch.cat([w.double().flatten() for w in weights])
    found = global_norm(grads, weights, impl=impl)
    assert found.dtype == torch.float64 and found.shape == ()
    assert found.item() == pytest.approx(flat.norm().item(), rel=1e-5 if dtype != torch.float64 else 1e-12)


def test_the_norm_of_mixed_dtypes_and_of_nothing(impl: str) -> None:
    grads = [torch.full((4,), 2.0, dtype=dtype) for dtype in DTYPES]
    assert global_norm(grads, impl=impl).item() == 8.0
    assert global_norm([], impl=impl).item() == 0.0
    assert global_norm([torch.empty(0), torch.empty(3, 0)], impl=impl).item() == 0.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_norm", [1.5, 1e4])
def test_clipping_is_torchs(impl: str, dtype: torch.dtype, max_norm: float) -> None:
    params = parameters_with(draw(dtype, 1))
    twins = parameters_with([g.double() for g in draw(dtype, 1)])
    expected = torch.nn.utils.clip_grad_norm_(twins, max_norm)
    found = clip_grad_norm_(params, max_norm, impl=impl)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_within_rounding([p.grad for p in params], [t.grad for t in twins], times=1.0)


def test_a_small_norm_changes_no_bit(impl: str) -> None:
    (g,) = draw(torch.float32, 1, shapes=[(100, 7)])
    params = parameters_with([g.clone()])
    clip_grad_norm_(params, 1e3, impl=impl)
    assert params[0].grad.equal(g)


def test_clipping_skips_parameters_without_a_gradient_and_takes_one_tensor(impl: str) -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    assert clip_grad_norm_([p, q], 1.0, impl=impl).item() == 5.0
    assert clip_grad_norm_(q, 1.0, impl=impl).item() == 0.0
    assert clip_grad_norm_(p, 0.5, impl=impl).item() == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(p.grad, torch.tensor([0.3, 0.4]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_norm_that_is_not_finite_is_seen(impl: str, value: float) -> None:
    params = parameters_with([torch.tensor([1.0, value]), torch.ones(3)])
    assert not clip_grad_norm_(params, 1.0, impl=impl).isfinite()
    assert not params[0].grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_centralised_rows_have_no_mean(impl: str, dtype: torch.dtype) -> None:
    grads = draw(dtype, 1)
    exact = [centralized(g) for g in grads]
    centralize_gradients_(grads, impl=impl)
    assert_within_rounding(grads, exact, times=1.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_are_right_in_every_layout(impl: str, layout: str) -> None:
    drawn = draw(torch.float64, 1, shapes=[(6, 5, 3, 3), (6, 5, 1, 1), (1, 5, 3, 3)])
    grads = [LAYOUTS[layout](g) for g in drawn]
    flat = torch.cat([g.flatten() for g in grads])
    assert global_norm(grads, impl=impl).item() == pytest.approx(flat.norm().item(), rel=1e-12)
    weights = [g.contiguous() for g in grads]
    assert global_norm(grads, weights, impl=impl).item() == pytest.approx(flat.square().norm().item(), rel=1e-12)
    if layout != "expanded":  # writing to memory that is shared is the caller's mistake
        exact = [centralized(g) for g in grads]
        centralize_gradients_(grads, impl=impl)
        assert_within_rounding(grads, exact)


def test_long_and_many_rows(impl: str) -> None:
    grads = draw(torch.float32, 1, shapes=[(2, 40_000), (5000, 3), (300, 100)])
    exact = [centralized(g) for g in grads]
    centralize_gradients_(grads, impl=impl)
    assert_within_rounding(grads, exact)


def test_bits_do_not_depend_on_threads() -> None:
    results: dict[str, list[Tensor]] = {}
    with every_isa_and_thread_count() as pairs:
        for isa, threads in pairs:
            params = parameters_with(draw(torch.float32, 1, shapes=[(512, 130), (100_003,), (70_000, 3)]))
            grads = [p.grad for p in params]
            centralize_gradients_(grads, impl="cpp")
            found = [clip_grad_norm_(params, 1.0, impl="cpp"), *grads]
            first = results.setdefault(isa, found)
            assert all(a.equal(b) for a, b in zip(first, found, strict=True)), f"{isa}, {threads} threads"
    for found in results.values():
        torch.testing.assert_close(found, results["generic"], rtol=1e-5, atol=1e-7)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="max_norm must be positive, got 0"):
        clip_grad_norm_([torch.zeros(1)], 0)
    with pytest.raises(ValueError, match=r"weights\[0\] must have the shape \(2,\) of tensors\[0\], got \(3,\)"):
        global_norm([torch.zeros(2)], [torch.zeros(3)])
    with pytest.raises(ValueError, match="impl of gradients must be"):
        global_norm([torch.zeros(2)], impl="fortran")
