"""LAMB over lists of tensors: every implementation against a transcription of the paper and against timm."""

import pytest
import torch
from torch import Tensor

from ssl_fast.ops.lamb import lamb_step_
from tests.ops.lists import (
    DTYPES,
    LAYOUTS,
    SHAPES,
    assert_within_rounding,
    available,
    draw,
    every_isa_and_thread_count,
    like,
)

SETTINGS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.05}


@pytest.fixture(params=["reference", "cpp"])
def impl(request: pytest.FixtureRequest) -> str:
    return available("lamb", request.param)


def lamb_by_the_paper(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, *, adapt: bool, corrected: bool = True, clip: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 2 of You et al. 2020 in float64, one tensor; returns the new p, m and v."""
    p, g, m, v = p.double(), g.double(), m.double(), v.double()
    (beta1, beta2), eps, decay = SETTINGS["betas"], SETTINGS["eps"], SETTINGS["weight_decay"] if adapt else 0.0
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = (m / (1 - beta1**t), v / (1 - beta2**t)) if corrected else (m, v)
    r = m_hat / (v_hat.sqrt() + eps)
    direction = r + decay * p
    ratio = 1.0
    if adapt and p.norm() > 0 and direction.norm() > 0:
        ratio = float(p.norm() / direction.norm())
        ratio = min(ratio, 1.0) if clip else ratio
    return p - SETTINGS["lr"] * ratio * direction, m, v


def moments(params: list[Tensor], seed: int, positive: bool = False) -> list[Tensor]:
    found = like(params, seed, torch.promote_types(params[0].dtype, torch.float32))
    return [m.square_() if positive else m for m in found]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("corrected", "clip"), [(True, False), (False, True)])
def test_it_is_the_papers_update(impl: str, dtype: torch.dtype, corrected: bool, clip: bool) -> None:
    params, grads = draw(dtype, 1), draw(dtype, 2)
    first, second = moments(params, 3), moments(params, 4, positive=True)
    exact = [
        lamb_by_the_paper(*row, 3, adapt=row[0].ndim > 1, corrected=corrected, clip=clip)
        for row in zip(params, grads, first, second, strict=True)
    ]
    numbers = {"step": 3, "bias_correction": corrected, "clip": clip}
    lamb_step_(params, grads, first, second, **SETTINGS, **numbers, impl=impl)
    for results, wanted in zip((params, first, second), zip(*exact, strict=True), strict=True):
        assert_within_rounding(results, list(wanted), times=8.0)


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "slice"])
def test_it_is_right_in_every_layout(impl: str, layout: str, grad_layout: str) -> None:
    shapes = [(6, 5, 3, 3), (6, 5, 1, 1), (1, 5, 3, 3)]
    params = [LAYOUTS[layout](p) for p in draw(torch.float64, 1, shapes=shapes)]
    grads = [LAYOUTS[grad_layout](g) for g in draw(torch.float64, 2, shapes=shapes)]
    first, second = moments(params, 3), [v.contiguous() for v in moments(params, 4, positive=True)]
    exact = [lamb_by_the_paper(*row, 2, adapt=True) for row in zip(params, grads, first, second, strict=True)]
    lamb_step_(params, grads, first, second, step=2, **SETTINGS, impl=impl)
    for results, wanted in zip((params, first, second), zip(*exact, strict=True), strict=True):
        assert_within_rounding(results, list(wanted))


@pytest.mark.parametrize("zero", ["param", "grad"])
def test_a_zero_norm_gives_a_ratio_of_one(impl: str, zero: str) -> None:
    p, g = torch.full((3, 3), 2.0), torch.full((3, 3), 0.5)
    (p if zero == "param" else g).zero_()
    expected = p - 0.1 * g.sign()
    lamb_step_([p], [g], [torch.zeros(3, 3)], [torch.zeros(3, 3)], step=1, lr=0.1, weight_decay=0.0, impl=impl)
    torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-6)


def test_not_finite_gradients_are_passed_on_and_stay_in_their_tensor(impl: str) -> None:
    params = [torch.ones(2, 2), torch.ones(2, 2)]
    grads = [torch.full((2, 2), torch.nan), torch.ones(2, 2)]
    state = [[torch.zeros(2, 2) for _ in params] for _ in "mv"]
    lamb_step_(params, grads, *state, step=1, lr=0.1, impl=impl)
    assert params[0].isnan().all() and params[1].isfinite().all()


def test_tensors_of_rate_and_step_are_the_numbers(impl: str) -> None:
    results = []
    for kind in (float, lambda x: torch.tensor(x, dtype=torch.float64)):
        params, grads = draw(torch.float64, 1), draw(torch.float64, 2)
        state = moments(params, 3), moments(params, 4, positive=True)
        lamb_step_(params, grads, *state, step=kind(7.0), lr=kind(0.3), impl=impl)
        results.append(params)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


def test_bits_do_not_depend_on_threads() -> None:
    results: dict[str, list[Tensor]] = {}
    with every_isa_and_thread_count() as pairs:
        for isa, threads in pairs:
            shapes = [(512, 130), (100_003,), (900, 800), (7000, 3)]  # the third is larger than the cached run
            params, grads = draw(torch.float32, 1, shapes=shapes), draw(torch.float32, 2, shapes=shapes)
            state = [like(params, 3, scale=0.0) for _ in "mv"]
            lamb_step_(params, grads, *state, step=1, **SETTINGS, impl="cpp")
            found = [*params, *state[0], *state[1]]
            first = results.setdefault(isa, found)
            assert all(a.equal(b) for a, b in zip(first, found, strict=True)), f"{isa}, {threads} threads"
    for found in results.values():
        torch.testing.assert_close(found, results["generic"], rtol=1e-5, atol=1e-6)


def test_adapt_and_bad_arguments(impl: str) -> None:
    params, grads = draw(torch.float64, 1), draw(torch.float64, 2)
    state = [like(params, 3, scale=0.0) for _ in "mv"]
    flags = [i % 2 == 0 for i in range(len(SHAPES))]
    exact = [lamb_by_the_paper(*row, 1, adapt=flag)[0] for *row, flag in zip(params, grads, *state, flags, strict=True)]
    lamb_step_(params, grads, *state, step=1, **SETTINGS, adapt=flags, impl=impl)
    assert_within_rounding(params, exact)
    a, half = torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"first\[0\] must be torch.float32 for a torch.bfloat16 parameter"):
        lamb_step_([half], [half], [half], [half], step=1, lr=0.1)
    with pytest.raises(ValueError, match="adapt must have one entry"):
        lamb_step_([a], [a], [a], [a], step=1, lr=0.1, adapt=[])
    lamb_step_([], [], [], [], step=1, lr=0.1, impl=impl)
