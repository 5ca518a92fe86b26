"""SAM's updates: every implementation against float64 and against torch's own SGD and AdamW."""

import pytest
import torch
from torch import Tensor

from ssl_fast.ops.gradients import global_norm
from ssl_fast.ops.sam import sam_adamw_step_, sam_ascend_, sam_sgd_step_
from tests.ops.lists import DTYPES, LAYOUTS, assert_within_rounding, available, draw, every_isa_and_thread_count, like

BASES = {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, "adamw": {"lr": 0.1, "weight_decay": 0.05}}


@pytest.fixture(params=["reference", "cpp"])
def impl(request: pytest.FixtureRequest) -> str:
    return available("sam", request.param)


def wide(tensors: list[Tensor]) -> list[Tensor]:
    """Copies in float64."""
    return [t.to(torch.float64, copy=True) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_ascent_is_the_papers_and_saves_every_bit(impl: str, dtype: torch.dtype, adaptive: bool) -> None:
    params, grads = draw(dtype, 1), draw(dtype, 2)
    saved, before = like(params, 3), [p.clone() for p in params]
    flat = torch.cat(
        [(p.double() * g if adaptive else g.double()).flatten() for p, g in zip(params, grads, strict=True)]
    )
    exact = [
        p.double() + 0.5 * (p.double().square() if adaptive else 1.0) * g.double() / (flat.norm() + 1e-12)
        for p, g in zip(params, grads, strict=True)
    ]
    norm = global_norm(grads, params if adaptive else None, impl=impl)
    sam_ascend_(params, grads, saved, norm=norm, rho=0.5, adaptive=adaptive, impl=impl)
    assert_within_rounding(params, exact)
    assert all(s.equal(b) for s, b in zip(saved, before, strict=True))


def test_a_common_scale_of_the_gradients_cancels(impl: str) -> None:
    results = []
    for scale in (1.0, 2.0**16):
        params, grads = draw(torch.float32, 1), draw(torch.float32, 2, scale)
        sam_ascend_(params, grads, like(params, 3), norm=global_norm(grads, impl=impl), impl=impl)
        results.append(params)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_zero_gradients_leave_the_parameters(impl: str) -> None:
    p = torch.tensor([1.0, -2.0])
    sam_ascend_([p], [torch.zeros(2)], [torch.empty(2)], norm=torch.tensor(0.0), impl=impl)
    assert p.tolist() == [1.0, -2.0]


def by_torch(base: str, saved: list[Tensor], grads: list[list[Tensor]], **options: object) -> list[Tensor]:
    """The parameters after steps of torch.optim in float64."""
    params = [torch.nn.Parameter(s) for s in wide(saved)]
    optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[base](params, **options)
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = g.double()
        optimizer.step()
    return [p.detach() for p in params]


def step_down(
    base: str, params: list[Tensor], saved: list[Tensor], grads: list[Tensor], state: list, step: int, **options
):
    if base == "sgd":
        sam_sgd_step_(params, saved, grads, state[0] if options["momentum"] else [], **options)
    else:
        sam_adamw_step_(params, saved, grads, *state, step=step, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("base", "more"), [("sgd", {}), ("sgd", {"nesterov": True}), ("sgd", {"momentum": 0.0}), ("adamw", {})], ids=str
)
def test_the_way_down_is_torchs_step_from_the_saved_parameters(
    impl: str, dtype: torch.dtype, base: str, more: dict
) -> None:
    options = {**BASES[base], **more}
    saved = draw(dtype, 1)
    # AdamW's squares underflow in moments of half precision, in torch too: one step from zero does not read them.
    grads = [draw(dtype, seed) for seed in ((2, 3) if dtype.itemsize > 2 or base == "sgd" else (2,))]
    exact = by_torch(base, saved, grads, **options)
    state = [[torch.zeros_like(s) for s in saved] for _ in range(2)]
    for step, g in enumerate(grads, 1):
        params = like(saved, 9)  # noise: what the parameters hold is not read
        step_down(base, params, saved, g, state, step, **options, impl=impl)
        saved = params
    assert_within_rounding(params, exact)


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "slice"])
@pytest.mark.parametrize("base", BASES)
def test_all_is_right_in_every_layout(impl: str, base: str, layout: str, grad_layout: str) -> None:
    shapes = [(6, 5, 3, 3), (6, 5, 1, 1), (1, 5, 3, 3)]
    saved = [LAYOUTS[layout](p) for p in draw(torch.float64, 1, shapes=shapes)]
    grads = [LAYOUTS[grad_layout](g) for g in draw(torch.float64, 2, shapes=shapes)]
    params = [LAYOUTS[layout](s.clone()) for s in saved]
    norm = global_norm(grads, impl=impl)
    exact = [p + 0.05 * g / norm for p, g in zip(params, grads, strict=True)]
    kept = like(params, 3)
    sam_ascend_(params, grads, kept, norm=norm, impl=impl)
    assert_within_rounding(params, exact)
    assert all(k.equal(s) for k, s in zip(kept, saved, strict=True))
    exact = by_torch(base, saved, [grads], **BASES[base])
    step_down(base, params, kept, grads, [like(params, 4, scale=0.0) for _ in "mv"], 1, **BASES[base], impl=impl)
    assert_within_rounding(params, exact)


def test_a_tensor_learning_rate_is_the_number(impl: str) -> None:
    for base in BASES:
        results = []
        for lr in (0.3, torch.tensor(0.3, dtype=torch.float64)):
            s, g = draw(torch.float64, 1), draw(torch.float64, 2)
            p, state = like(s, 3), [like(s, 4, scale=0.0) for _ in "mv"]
            step_down(base, p, s, g, state, 1, **{**BASES[base], "lr": lr}, impl=impl)
            results.append(p)
        torch.testing.assert_close(*results, rtol=1e-13, atol=1e-14)


def test_bits_do_not_depend_on_threads() -> None:
    results: dict[str, list[Tensor]] = {}
    with every_isa_and_thread_count() as pairs:
        for isa, threads in pairs:
            shapes = [(512, 130), (100_003,), (70_000, 3)]
            params, grads = draw(torch.float32, 1, shapes=shapes), draw(torch.float32, 2, shapes=shapes)
            saved, state = like(params, 3), [like(params, 4, scale=0.0) for _ in "mv"]
            for adaptive in (False, True):
                sam_ascend_(params, grads, saved, norm=global_norm(grads, impl="cpp"), adaptive=adaptive, impl="cpp")
                for base in BASES:
                    step_down(base, params, saved, grads, state, 1, **BASES[base], impl="cpp")
            found = [*params, *saved, *state[0], *state[1]]
            first = results.setdefault(isa, found)
            assert all(a.equal(b) for a, b in zip(first, found, strict=True)), f"{isa}, {threads} threads"
    for found in results.values():
        torch.testing.assert_close(found, results["generic"], rtol=1e-5, atol=1e-6)


def test_nothing_at_all(impl: str) -> None:
    sam_ascend_([], [], [], norm=torch.zeros(()), impl=impl)
    sam_sgd_step_([], [], [], [], lr=0.1, impl=impl)
    sam_adamw_step_([], [], [], [], [], step=1, lr=0.1, impl=impl)


def test_bad_arguments_are_named() -> None:
    a, b = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"grads\[0\] must have the shape \(2,\)"):
        sam_ascend_([a], [b], [a.clone()], norm=torch.ones(()))
    with pytest.raises(ValueError, match=r"saved\[0\] must be torch.float32, as params\[0\], got torch.float64"):
        sam_ascend_([a], [a], [a.double()], norm=torch.ones(()))
    with pytest.raises(ValueError, match=r"buffers must be as many as params \(1\), got 0"):
        sam_sgd_step_([a], [a], [a], [], lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="step must be at least 1, got 0"):
        sam_adamw_step_([a], [a], [a], [a], [a], step=0, lr=0.1)
