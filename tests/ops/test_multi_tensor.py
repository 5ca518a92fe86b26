"""EMA and LARS over lists of tensors: every implementation against float64, on every layout and dtype."""

import pytest
import torch
from torch import Tensor

from ssl_fast.ops import dispatch
from ssl_fast.ops.multi_tensor import ema_update_, lars_step_, lookahead_update_

SHAPES = [(), (1,), (7,), (40_000,), (0,), (3, 0), (33, 65), (16, 8, 3, 3), (16, 8, 1, 1), (2, 3, 4, 5, 6)]
SETTINGS = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.1, "eps": 1e-8}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["reference", "cpp"])
def impl(request: pytest.FixtureRequest) -> str:
    try:
        dispatch.choose("multi_tensor", request.param, torch.zeros(1))
    except RuntimeError as error:
        pytest.skip(str(error))
    return request.param


def draw(shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(s, generator=generator, dtype=torch.float64) * scale).to(dtype) for s in shapes]


def buffers_of(params: list[Tensor], seed: int = 3) -> list[Tensor]:
    """Random momentum, laid out like the parameters."""
    dtype = torch.promote_types(params[0].dtype, torch.float32)
    drawn = draw([tuple(p.shape) for p in params], dtype, seed)
    return [torch.empty_like(p, dtype=dtype).copy_(v) for p, v in zip(params, drawn, strict=True)]


def lars_by_the_paper(
    p: Tensor, g: Tensor, v: Tensor, *, adapt: bool, nesterov: bool = False, clip: bool = False
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of You et al. 2017 in float64, one tensor, rate outside the buffer; returns the new p and v."""
    p, g, v = p.double(), g.double(), v.double()
    lr, momentum, decay, trust, eps = SETTINGS.values()
    if not adapt:
        local, decay = 1.0, 0.0
    elif p.norm() == 0 or g.norm() == 0:
        local = 1.0
    else:
        local = float(trust * p.norm() / (g.norm() + decay * p.norm() + eps))
        local = min(local / lr, 1.0) if clip else local
    update = local * (g + decay * p)
    v = momentum * v + update
    return p - lr * (update + momentum * v if nesterov else v), v


def assert_within_rounding(result: Tensor, exact: Tensor, times: float = 4.0) -> None:
    """Errors in units of the result's rounding; terms of size 1 may cancel, so a result below 1 counts as 1."""
    if result.numel() == 0:
        return
    allowed = times * torch.finfo(result.dtype).eps * max(exact.abs().max().item(), 1.0)
    worst = (result.double() - exact).abs().max().item()
    assert worst <= allowed, f"{worst:.2e} against {allowed:.2e}"


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lars_is_the_papers_update(impl: str, dtype: torch.dtype, nesterov: bool, clip: bool) -> None:
    params, grads = draw(SHAPES, dtype, 1), draw(SHAPES, dtype, 2, scale=0.05)
    buffers = buffers_of(params)
    exact = [
        lars_by_the_paper(p, g, v, adapt=p.ndim > 1, nesterov=nesterov, clip=clip)
        for p, g, v in zip(params, grads, buffers, strict=True)
    ]
    lars_step_(params, grads, buffers, **SETTINGS, nesterov=nesterov, clip=clip, impl=impl)
    for p, v, (p_exact, v_exact) in zip(params, buffers, exact, strict=True):
        assert_within_rounding(p, p_exact)
        assert_within_rounding(v, v_exact)


def test_lars_adapt_overrides_the_convention(impl: str) -> None:
    params, grads = draw([(5,), (4, 4)], torch.float64, 1), draw([(5,), (4, 4)], torch.float64, 2)
    buffers = buffers_of(params)
    exact = [lars_by_the_paper(*row, adapt=a) for *row, a in zip(params, grads, buffers, [True, False], strict=True)]
    lars_step_(params, grads, buffers, **SETTINGS, adapt=[True, False], impl=impl)
    for p, (p_exact, _) in zip(params, exact, strict=True):
        assert_within_rounding(p, p_exact)


@pytest.mark.parametrize("zero", ["param", "grad"])
def test_lars_of_a_zero_norm_is_plain_sgd(impl: str, zero: str) -> None:
    p, g = torch.full((3, 3), 2.0), torch.full((3, 3), 0.5)
    (p if zero == "param" else g).zero_()
    expected = p - 0.3 * (g + 0.01 * p)
    lars_step_([p], [g], [torch.zeros(3, 3)], **SETTINGS, impl=impl)
    torch.testing.assert_close(p, expected)


def test_lars_passes_non_finite_gradients_on(impl: str) -> None:
    p, other = torch.ones(2, 2), torch.ones(2, 2)
    grads = [torch.full((2, 2), torch.nan), torch.ones(2, 2)]
    lars_step_([p, other], grads, [torch.zeros(2, 2), torch.zeros(2, 2)], **SETTINGS, impl=impl)
    assert p.isnan().all()
    assert other.isfinite().all()


LAYOUTS = {
    "contiguous": lambda t: t.clone(),
    "channels_last": lambda t: t.clone(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "slice": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "expanded": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "slice"])
def test_lars_is_right_in_every_layout(impl: str, layout: str, grad_layout: str) -> None:
    shapes = [(6, 5, 3, 3), (6, 5, 1, 1), (1, 5, 3, 3)]
    params = [LAYOUTS[layout](p) for p in draw(shapes, torch.float64, 1)]
    grads = [LAYOUTS[grad_layout](g) for g in draw(shapes, torch.float64, 2)]
    for buffers in (buffers_of(params), [v.contiguous() for v in buffers_of(params)]):
        moved = [LAYOUTS[layout](p) for p in params]
        exact = [lars_by_the_paper(*row, adapt=True) for row in zip(moved, grads, buffers, strict=True)]
        lars_step_(moved, grads, buffers, **SETTINGS, impl=impl)
        for p, v, (p_exact, v_exact) in zip(moved, buffers, exact, strict=True):
            assert_within_rounding(p, p_exact)
            assert_within_rounding(v, v_exact)


def test_lars_takes_unaligned_gradients_in_a_flat_bucket(impl: str) -> None:
    params = draw([(37, 11), (5, 5), (300,)], torch.float32, 1)
    bucket = draw([(1 + sum(p.numel() for p in params),)], torch.float32, 2)[0]
    pieces = bucket[1:].split([p.numel() for p in params])
    grads = [piece.view_as(p) for piece, p in zip(pieces, params, strict=True)]
    buffers = buffers_of(params)
    exact = [lars_by_the_paper(p, g, v, adapt=p.ndim > 1) for p, g, v in zip(params, grads, buffers, strict=True)]
    lars_step_(params, grads, buffers, **SETTINGS, impl=impl)
    for p, (p_exact, _) in zip(params, exact, strict=True):
        assert_within_rounding(p, p_exact)


def test_lars_takes_gradients_of_another_dtype(impl: str) -> None:
    p, v = draw([(8, 8)], torch.float32, 1)[0], torch.zeros(8, 8)
    g = draw([(8, 8)], torch.bfloat16, 2)[0]
    exact, _ = lars_by_the_paper(p, g, v, adapt=True)
    lars_step_([p], [g], [v], **SETTINGS, impl=impl)
    assert_within_rounding(p, exact)


def test_lars_of_mixed_dtypes_and_of_nothing(impl: str) -> None:
    params = [draw([(9, 3)], dtype, 1)[0] for dtype in DTYPES]
    grads = [draw([(9, 3)], dtype, 2)[0] for dtype in DTYPES]
    buffers = [buffers_of([p])[0] for p in params]
    exact = [lars_by_the_paper(*row, adapt=True)[0] for row in zip(params, grads, buffers, strict=True)]
    lars_step_(params, grads, buffers, **SETTINGS, impl=impl)
    for p, p_exact in zip(params, exact, strict=True):
        assert_within_rounding(p, p_exact)
    lars_step_([], [], [], lr=0.1, impl=impl)
    ema_update_([], [], 0.5, impl=impl)


def test_a_tensor_learning_rate_is_the_number(impl: str) -> None:
    results = []
    for lr in (0.3, torch.tensor(0.3, dtype=torch.float64)):
        p, g, v = (draw([(4, 6)], torch.float64, seed)[0] for seed in (1, 2, 3))
        lars_step_([p], [g], [v], lr=lr, clip=True, impl=impl)
        results.append(p)
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-15)


def test_many_tensors(impl: str) -> None:
    shapes = [(1 + i % 7, 1 + i % 5) if i % 3 else (1 + i % 11,) for i in range(2500)]
    params, grads = draw(shapes, torch.float64, 1), draw(shapes, torch.float64, 2)
    buffers = buffers_of(params)
    exact = [lars_by_the_paper(p, g, v, adapt=p.ndim > 1)[0] for p, g, v in zip(params, grads, buffers, strict=True)]
    lars_step_(params, grads, buffers, **SETTINGS, impl=impl)
    for p, p_exact in zip(params, exact, strict=True):
        assert_within_rounding(p, p_exact)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
@pytest.mark.parametrize("source_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
def test_ema_is_the_average(impl: str, target_dtype: torch.dtype, source_dtype: torch.dtype, momentum: float) -> None:
    targets, sources = draw(SHAPES, target_dtype, 1), draw(SHAPES, source_dtype, 2)
    exact = [momentum * t.double() + (1 - momentum) * s.double() for t, s in zip(targets, sources, strict=True)]
    ema_update_(targets, sources, momentum, impl=impl)
    for t, t_exact in zip(targets, exact, strict=True):
        assert_within_rounding(t, t_exact, times=2.0)


def test_ema_is_exact_at_both_ends(impl: str) -> None:
    (t,), (s,) = draw([(1000,)], torch.float32, 1), draw([(1000,)], torch.float32, 2)
    before = t.clone()
    ema_update_([t], [s], 1.0, impl=impl)
    assert t.equal(before)
    ema_update_([t], [s], 0.0, impl=impl)
    assert t.equal(s)


@pytest.mark.parametrize("source_layout", LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "slice"])
def test_ema_is_right_in_every_layout(impl: str, layout: str, source_layout: str) -> None:
    shapes = [(6, 5, 3, 3), (6, 5, 1, 1), (1, 5, 3, 3)]
    targets = [LAYOUTS[layout](t) for t in draw(shapes, torch.float32, 1)]
    sources = [LAYOUTS[source_layout](s) for s in draw(shapes, torch.float32, 2)]
    exact = [0.9 * t.double() + 0.1 * s.double() for t, s in zip(targets, sources, strict=True)]
    ema_update_(targets, sources, 0.9, impl=impl)
    for t, t_exact in zip(targets, exact, strict=True):
        assert_within_rounding(t, t_exact)


def test_ema_copies_what_is_not_floating_point(impl: str) -> None:
    targets = [torch.tensor(3), torch.tensor([True, False]), torch.zeros(2)]
    ema_update_(targets, [torch.tensor(8), torch.tensor([False, True]), torch.ones(2)], 0.75, impl=impl)
    assert targets[0].item() == 8
    assert targets[1].tolist() == [False, True]
    assert targets[2].tolist() == [0.25, 0.25]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ema_hides_no_infinity(impl: str, dtype: torch.dtype) -> None:
    target = torch.ones(3, dtype=dtype)
    ema_update_([target], [torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=dtype)], 0.9, impl=impl)
    assert not target.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number_is_read_and_written_as_torch_does(impl: str, dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    every = every[every.isfinite() & (every.abs() < 1e38)]
    wide = torch.zeros(len(every))
    ema_update_([wide], [every], 0.0, impl=impl)
    assert wide.equal(every.float())
    between = torch.cat([wide * 1.0003, wide * 0.998, wide + 2.0**-26, torch.tensor([65519.0, 65520.0, 1e6])])
    narrow = torch.zeros(len(between), dtype=dtype)
    ema_update_([narrow], [between], 0.0, impl=impl)
    assert narrow.equal(between.to(dtype))


def test_the_version_counter_tells_autograd(impl: str) -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    output = (weight * weight).sum()
    ema_update_([weight], [torch.zeros(2, 2)], 0.5, impl=impl)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_bits_do_not_depend_on_threads() -> None:
    _cpu = pytest.importorskip("ssl_fast._cpu", reason="the C++ module was not built")
    shapes = [(512, 130), (100_003,), (64, 64), (70_000, 3)]
    before = torch.get_num_threads(), _cpu.isa()
    results: dict[str, list[Tensor]] = {}
    try:
        for isa in ("generic", "avx2", "avx512"):
            try:
                _cpu.set_isa(isa)
            except ValueError:
                continue
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                params, grads = draw(shapes, torch.float32, 1), draw(shapes, torch.float32, 2)
                buffers = buffers_of(params)
                for _ in range(2):
                    lars_step_(params, grads, buffers, **SETTINGS, impl="cpp")
                ema_update_(params, grads, 0.9, impl="cpp")
                first = results.setdefault(isa, params)
                assert all(a.equal(b) for a, b in zip(first, params, strict=True)), f"{isa}, {threads} threads"
    finally:
        torch.set_num_threads(before[0])
        _cpu.set_isa(before[1])
    for params in results.values():
        torch.testing.assert_close(params, results["generic"], rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_named() -> None:
    a, b = torch.zeros(2, 2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"sources must be as many as targets \(1\), got 2"):
        ema_update_([a], [a, a], 0.5)
    with pytest.raises(ValueError, match=r"sources\[0\] must have the shape \(2, 2\)"):
        ema_update_([a], [b], 0.5)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got 1.5"):
        ema_update_([a], [a], 1.5)
    with pytest.raises(ValueError, match=r"grads\[0\] must have the shape \(2, 2\)"):
        lars_step_([a], [b], [a], lr=0.1)
    with pytest.raises(ValueError, match=r"buffers\[0\] must be torch.float32 for a torch.bfloat16 parameter"):
        lars_step_([a.bfloat16()], [a.bfloat16()], [a.bfloat16()], lr=0.1)
    with pytest.raises(ValueError, match="adapt must have one entry"):
        lars_step_([a], [a], [a], lr=0.1, adapt=[True, False])
    with pytest.raises(ValueError, match="impl of multi_tensor must be"):
        ema_update_([a], [a], 0.5, impl="fortran")


def test_a_tensor_subclass_takes_the_reference() -> None:
    class Tagged(torch.Tensor):
        pass

    t = torch.zeros(2, 2).as_subclass(Tagged)
    ema_update_([t], [torch.ones(2, 2)], 0.5)
    assert t.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    with pytest.raises(RuntimeError, match=r"plain tensors, got a Tagged|was not built"):
        ema_update_([t], [torch.ones(2, 2)], 0.5, impl="cpp")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
def test_lookahead_moves_slow_and_fast_to_one_place(impl: str, dtype: torch.dtype, layout: str) -> None:
    shapes = [(6, 5, 3, 3), (1, 5, 3, 3)]
    fast = [LAYOUTS[layout](t) for t in draw(shapes, dtype, 1)] + [draw([(40_001,)], dtype, 3)[0]]
    slow = draw([tuple(f.shape) for f in fast], dtype, 2)
    exact = [s.double() + 0.3 * (f.double() - s.double()) for f, s in zip(fast, slow, strict=True)]
    lookahead_update_(fast, slow, 0.3, impl=impl)
    for f, s, wanted in zip(fast, slow, exact, strict=True):
        assert f.equal(s)
        assert_within_rounding(s, wanted, times=2.0)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 2"):
        lookahead_update_(fast, slow, 2, impl=impl)
    with pytest.raises(ValueError, match=r"slow\[0\] must be"):
        lookahead_update_([torch.zeros(1)], [torch.zeros(1, dtype=torch.float64)])


def test_auto_leaves_one_dtype_on_a_cpu_to_torch() -> None:
    same, mixed = (torch.zeros(3), torch.ones(3)), (torch.zeros(3), torch.ones(3, dtype=torch.bfloat16))
    taken = []
    for target, source in (same, mixed):
        ema_update_([target], [source], 0.5)
        taken.append(dispatch.backends()["multi_tensor"]["taken"])
        assert target.tolist() == [0.5] * 3
    assert taken[0] == "reference"
    assert taken[1] == ("cpp" if dispatch.backends()["multi_tensor"]["cpp"] == "available" else "reference")
