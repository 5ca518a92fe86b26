"""DINO's loss from logits and from rows with prototypes: every implementation against the equation."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import DINOCenter, DINOLoss, dino_loss, sinkhorn
from ssl_fast.ops.dino import dino_reference

OP = "prototypes"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def heads(
    num_student: int, num_teacher: int, num_samples: int, num_prototypes: int, dim: int, alignment: float = 0.5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit rows z [S, N, D], y [T, N, D] of about this cosine per sample, prototypes w, w' [K, D]; float64."""
    generator = torch.Generator().manual_seed(num_samples + num_prototypes)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    common, noise = draw(1, num_samples, dim), draw(num_student + num_teacher, num_samples, dim)
    rows = F.normalize(
        alignment * F.normalize(common, dim=2) + math.sqrt(1 - alignment**2) * F.normalize(noise, dim=2), dim=2
    )
    w = F.normalize(draw(num_prototypes, dim), dim=1)
    w_teacher = F.normalize(w + 0.1 * draw(num_prototypes, dim), dim=1)
    z, y = rows.split((num_student, num_teacher))
    return z.clone().requires_grad_(), y.clone(), w.requires_grad_(), w_teacher


def of(impl: str, device: str = "cpu", **options: Any) -> Callable[..., Tensor]:
    if isinstance(options.get("center"), Tensor):
        options["center"] = options["center"].to(device)
    return lambda z, y, w, wt: dino_loss(z, y, w, wt, impl=impl, **options)


def on(device: str, tensors: tuple[Tensor, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [t.detach().to(device, dtype).requires_grad_(t.requires_grad) for t in tensors]


# The equation


def test_reference_is_the_papers_pseudocode() -> None:
    """Algorithm 1 of the paper: both directions of two views."""
    z, y, _, _ = (t.detach() for t in heads(2, 2, 5, 7, 7))
    center = torch.randn(7, dtype=torch.float64)

    def H(t: Tensor, s: Tensor) -> Tensor:  # noqa: N802
        t = ((t - center) / 0.04).softmax(1)
        return -(t * (s / 0.1).log_softmax(1)).sum(1).mean()

    expected = H(y[0], z[1]) / 2 + H(y[1], z[0]) / 2
    torch.testing.assert_close(dino_reference(z, y, center=center), expected)
    torch.testing.assert_close(dino_loss(z, y, center=center, impl="reference"), expected)


def test_lightlys_loss_with_its_linear_layer(impl: str, device: str) -> None:
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    z, y, w, wt = on(device, heads(4, 2, 6, 20, 8))
    theirs = lightly.DINOLoss(20).to(device)
    theirs.center.copy_(torch.randn(20))
    center = theirs.center.flatten().clone()
    expected = theirs(list(y @ wt.T), list(z @ w.T))
    torch.testing.assert_close(dino_loss(z, y, w, wt, center=center, impl=impl), expected)


def test_numbers_worked_by_hand(impl: str, device: str) -> None:
    eye = torch.eye(2, device=device)
    # teacher (1, 0) at temperature 1: p = (e, 1) / (e + 1); student's logits (2, 0) at temperature 0.5: (4, 0)
    value = dino_loss(
        2 * eye[None, :1], eye[None, :1].expand(2, -1, -1), eye, eye,
        student_temperature=0.5, teacher_temperature=1.0, impl=impl,
    )  # fmt: skip
    log_l = math.log(math.exp(4) + 1)
    assert value.item() == pytest.approx((math.e * (log_l - 4) + log_l) / (math.e + 1), rel=1e-6)


@pytest.mark.parametrize("num_prototypes", [1, 7, 500])
def test_a_student_that_knows_nothing_gives_log_of_the_number_of_prototypes(
    num_prototypes: int, impl: str, device: str
) -> None:
    z, y, w, wt = on(device, heads(3, 2, 4, num_prototypes, 8))
    value = dino_loss(z * 0, y, w, wt, impl=impl)
    assert value.item() == pytest.approx(math.log(num_prototypes), rel=1e-6, abs=1e-6)


@pytest.fixture(params=[True, False], ids=["stored", "streamed"])
def stored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the teacher's logits are kept while Sinkhorn balances them."""
    if not request.param:
        monkeypatch.setattr("ssl_fast.ops.dino.STORED_LOGITS", 0)
    return bool(request.param)


def test_rows_and_prototypes_are_the_logits(impl: str, device: str) -> None:
    z, y, w, wt = on(device, heads(3, 2, 5, 60, 8), torch.float32)
    center = torch.linspace(-0.1, 0.1, 60, device=device)
    for option in (None, center, "sinkhorn"):
        found = torch.autograd.grad(dino_loss(z, y, w, wt, center=option, impl=impl), (z, w))
        logits = z @ w.T, y @ wt.T
        expected = torch.autograd.grad(dino_loss(*logits, center=option, impl="reference"), (z, w))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_order_of_the_prototypes_plays_no_part(impl: str, device: str) -> None:
    z, y, w, wt = on(device, heads(2, 2, 5, 300, 8))
    value = dino_loss(z, y, w, wt, center="sinkhorn", impl=impl)
    torch.testing.assert_close(dino_loss(z, y, w.flip(0), wt.flip(0), center="sinkhorn", impl=impl), value)


# Against float64


SHAPES = [(2, 2, 16, 300, 64), (10, 2, 3, 200, 32), (1, 2, 33, 193, 9), (3, 1, 1, 1, 1), (2, 2, 100, 400, 17)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_by_the_rule(  # type: ignore[no-untyped-def]
    shape: tuple[int, ...], dtype: torch.dtype, impl: str, device: str, checker
) -> None:
    center = torch.randn(shape[3], generator=torch.Generator().manual_seed(1)).double() / 10
    weight = torch.rand(shape[2], generator=torch.Generator().manual_seed(2)).double()
    for reduction in ("mean", "none"):
        options = {"center": center, "weight": weight.to(device), "reduction": reduction}
        upstream = weight + 0.5 if reduction == "none" else torch.tensor(3.0)

        def plain(z: Tensor, y: Tensor, w: Tensor, wt: Tensor, reduction: str = reduction) -> Tensor:
            rows = torch.stack(
                [dino_reference(z[:, [n]], y[:, [n]], w, wt, center=center.to(z.dtype)) for n in range(z.shape[1])]
            )
            mass = weight.to(z.dtype)
            return rows * mass if reduction == "none" else (rows * mass).sum() / mass.sum()

        checker.against(of(impl, device, **options), plain, heads(*shape), dtype, device, upstream, neighbours=2)


# What loss and gradients may lose, relative to their size. In bf16 and fp16 it is the rounding of the gradient itself.
SWEEP = {torch.float32: (2e-6, 2e-5), torch.bfloat16: (2e-6, 4e-3), torch.float16: (2e-6, 1e-3)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [0.0, 0.7, 0.99])
def test_absolute_errors_over_alignment_and_temperature(  # type: ignore[no-untyped-def]
    alignment: float, dtype: torch.dtype, impl: str, device: str, checker
) -> None:
    inputs = on("cpu", heads(2, 2, 24, 500, 64, alignment), dtype)
    for temperature in (0.02, 0.04, 0.07, 0.2):
        options = {"student_temperature": 2.5 * temperature, "teacher_temperature": temperature}
        truth = checker.run(lambda *a, o=options: dino_reference(*a, **o), on("cpu", tuple(inputs), torch.float64))
        scale = 100 / torch.cat([g.flatten() for g in truth[1:]]).norm()  # so that fp16 can hold the gradient
        found = checker.run(of(impl, **options), on(device, tuple(inputs), dtype), scale.float())
        assert (found[0] - truth[0]).abs() <= SWEEP[dtype][0] * truth[0]
        for got, wanted in zip(found[1:], truth[1:], strict=True):
            wanted = wanted * scale.float()
            assert (got - wanted).norm() <= SWEEP[dtype][1] * wanted.norm(), f"temperature {temperature}"


@pytest.mark.parametrize("size", [30.0, 300.0])
def test_long_rows_and_low_temperatures_do_not_overflow(size: float, stored: bool, impl: str, device: str) -> None:
    z, y, w, wt = heads(2, 2, 9, 250, 16)
    inputs = (z.detach() * size, y * size, w.detach(), wt)
    exact = dino_reference(*inputs)
    value = dino_loss(*on(device, inputs), center="sinkhorn", impl=impl)
    assert value.isfinite()
    value = dino_loss(*on(device, inputs), impl=impl)
    torch.testing.assert_close(value.cpu().double(), exact, rtol=1e-4, atol=0)


def test_sinkhorn_center_is_the_plain_assignment(stored: bool, impl: str, device: str) -> None:
    z, y, w, wt = (t.detach() for t in heads(2, 2, 40, 210, 12))
    for iterations in (1, 3, 8):
        q = sinkhorn((y @ wt.T).flatten(0, 1), temperature=0.04, iterations=iterations).view(2, 40, 210)
        logs = (z @ w.T / 0.1).log_softmax(2)
        expected = -(q[0] * logs[1] + q[1] * logs[0]).sum(1).mean() / 2
        value = dino_loss(*on(device, (z, y, w, wt)), center="sinkhorn", sinkhorn_iterations=iterations, impl=impl)
        torch.testing.assert_close(value.cpu().double(), expected, rtol=3e-6, atol=0)


# Differentiation


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(reduction: str, impl: str) -> None:
    if impl == "triton":
        pytest.skip("the Triton kernels have no float64")
    z, y, w, wt = heads(3, 2, 3, 6, 4)

    def function(z: Tensor, w: Tensor) -> Tensor:
        return dino_loss(z, y, w, wt, normalize_prototypes=True, reduction=reduction, impl=impl)

    assert torch.autograd.gradcheck(function, (z * 3, w * 2))
    assert torch.autograd.gradgradcheck(function, (z, w))
    assert torch.autograd.gradcheck(lambda x: dino_loss(x, y, reduction=reduction), (z,))


def test_frozen_prototypes_and_teacher_get_no_gradient(impl: str, device: str) -> None:
    z, y, w, wt = on(device, heads(2, 2, 5, 30, 8))
    dino_loss(z, y.requires_grad_(), w.detach(), wt.requires_grad_(), impl=impl).backward()
    assert z.grad is not None and y.grad is None and wt.grad is None
    expected = torch.autograd.grad(dino_loss(z, y, w, wt, impl=impl), (z, w))
    torch.testing.assert_close(z.grad, expected[0])
    (alone,) = torch.autograd.grad(dino_loss(z.detach(), y, w, wt, impl=impl), w)
    torch.testing.assert_close(alone, expected[1])
    assert not dino_loss(z.detach(), y, w.detach(), wt, impl=impl).requires_grad


def test_upstream_gradient_of_stride_zero_and_twice(impl: str, device: str) -> None:
    z, y, w, wt = on(device, heads(2, 2, 9, 30, 8))
    rows = dino_loss(z, y, w, wt, reduction="none", impl=impl)
    stretched = torch.ones(1, device=device).expand(9)
    first = torch.autograd.grad(rows, (z, w), stretched, retain_graph=True)
    again = torch.autograd.grad(rows, (z, w), torch.ones_like(rows))
    assert all(map(torch.equal, first, again))


def test_transform_of_torch_func() -> None:
    z, y, w, wt = (t.detach() for t in heads(2, 2, 3, 5, 4))
    expected = torch.autograd.functional.jacobian(lambda a: dino_reference(a, y, w, wt), z)
    torch.testing.assert_close(torch.func.grad(lambda a: dino_loss(a, y, w, wt))(z), expected)


# Inputs of all kinds


def test_non_contiguous_and_empty_inputs(impl: str, device: str) -> None:
    z, y, w, wt = on(device, heads(2, 2, 6, 40, 8))
    value = dino_loss(z, y, w, wt, impl=impl)
    turned = [t.mT.contiguous().mT for t in (z, y, w, wt)]
    assert not turned[0].is_contiguous() and torch.equal(dino_loss(*turned, impl=impl), value)
    for center in (None, "sinkhorn"):
        nobody = dino_loss(z[:, :0], y[:, :0], w, wt, center=center, impl=impl)
        grads = torch.autograd.grad(nobody, (z, w))
        assert nobody.item() == 0 and not any(g.any() for g in grads)


def test_autocast_changes_nothing(impl: str, device: str) -> None:
    z, y, w, wt = on(device, heads(2, 2, 6, 40, 8))
    with torch.autocast(device, torch.bfloat16):
        value = dino_loss(z, y, w, wt, center="sinkhorn", impl=impl)
    assert value.dtype == torch.float32
    assert torch.equal(value, dino_loss(z, y, w, wt, center="sinkhorn", impl=impl))
    mixed = dino_loss(z.bfloat16(), y.bfloat16(), w, wt, impl=impl)
    assert mixed.dtype == torch.float32
    (grad,) = torch.autograd.grad(mixed, w)
    assert grad.dtype == w.dtype


def test_the_same_bits_every_time(stored: bool, impl: str, device: str) -> None:
    z, y, w, wt = on(device, heads(3, 2, 60, 700, 24))
    runs = []
    for _ in range(3):
        value = dino_loss(z, y, w, wt, center="sinkhorn", impl=impl)
        runs.append((value.detach(), *torch.autograd.grad(value, (z, w))))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_in_one_graph(reduction: str, backend: str, impl: str, device: str) -> None:
    torch._dynamo.reset()
    z, y, w, wt = on(device, heads(3, 2, 6, 40, 8))

    def function(z: Tensor, w: Tensor) -> Tensor:
        options = {"center": "sinkhorn", "reduction": reduction, "normalize_prototypes": True, "impl": impl}
        return dino_loss(z * 2, y, w, wt, **options).square().sum()

    # Inductor rounds the normalisation otherwise, and Sinkhorn multiplies that by 1 / 0.04.
    close = {"rtol": 1e-4, "atol": 1e-4} if backend == "inductor" else {}
    value, expected = torch.compile(function, fullgraph=True, backend=backend)(z, w), function(z, w)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, (z, w)), torch.autograd.grad(expected, (z, w)), **close)


def test_the_registered_ops_keep_torchs_rules(impl: str, device: str) -> None:
    z, y, w, wt = on(device, heads(2, 2, 4, 9, 5))
    for weight in (w, w.detach()):
        tensors, options = (z, weight, y, wt, None), (10.0, 25.0, True, impl, weight.requires_grad)
        coef = torch.rand(4, device=device)
        torch.library.opcheck(torch.ops.ssl_fast.prototypes, (*tensors, coef, *options, True))
        torch.library.opcheck(torch.ops.ssl_fast.prototypes_rows, (*tensors, *options))
    torch.library.opcheck(torch.ops.ssl_fast.prototype_log_sums, (y[0], wt, torch.rand(4, device=device), 25.0, impl))


# Arguments and modules


def test_module_is_the_function(impl: str, device: str) -> None:
    z, y, w, wt = on(device, heads(2, 2, 6, 40, 8))
    weight = torch.rand(6, device=device)
    module = DINOLoss(teacher_temperature=0.07, reduction="sum", impl=impl)
    expected = dino_loss(
        z, y, w, wt, teacher_temperature=0.07, center="sinkhorn", weight=weight, reduction="sum", impl=impl
    )
    assert torch.equal(module(z, y, w, wt, center="sinkhorn", weight=weight), expected)
    assert "reduction='sum'" in repr(module)


ROWS = (torch.ones(2, 3, 4), torch.ones(2, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(3, 4), torch.ones(3, 4)), {}, r"student must be .* \[views, N, D\].*got .*\[3, 4\]"),
        ((torch.ones(2, 3, 4), torch.ones(2, 4, 4)), {}, r"teacher must have the samples.*\[3, 4\].*got \[4, 4\]"),
        ((*ROWS, torch.ones(5, 4)), {}, "weight_student and weight_teacher must both be given"),
        ((*ROWS, torch.ones(5, 3), torch.ones(5, 3)), {}, r"weight_student must have shape \[K, 4\], got \[5, 3\]"),
        ((*ROWS, torch.ones(5, 4), torch.ones(6, 4)), {}, r"weight_teacher must have the shape.*got \[6, 4\]"),
        (ROWS, {"student_temperature": 0}, "student_temperature must be positive, got 0"),
        (ROWS, {"teacher_temperature": -1}, "teacher_temperature must be positive, got -1"),
        (ROWS, {"center": torch.ones(3)}, r"center must be .* \[4\].*got .*\[3\]"),
        (ROWS, {"center": "mean"}, "center must be a tensor, 'sinkhorn' or None, got 'mean'"),
        (ROWS, {"center": "sinkhorn", "sinkhorn_iterations": 0}, "iterations must be at least 1, got 0"),
        (ROWS, {"weight": torch.ones(2)}, r"weight must be .* \[3\]"),
        (ROWS, {"reduction": "avg"}, "reduction must be .* got 'avg'"),
        (ROWS, {"impl": "fast"}, "impl of prototype_logits must be .* got 'fast'"),
        (ROWS, {"grad_reduce": "max"}, "grad_reduce must be 'mean'.*got 'max'"),
        ((torch.ones(1, 3, 4), torch.ones(1, 3, 4)), {}, "no pair of views is left"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Tensor, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dino_loss(*arguments, **options)


# The centre


def test_center_is_the_moving_average_of_the_logits() -> None:
    center, y, w = DINOCenter(6, momentum=0.9), torch.randn(2, 5, 4), torch.randn(6, 4)
    expected = torch.zeros(6)
    for scale in (1.0, -2.0, 3.0):
        center.update_(scale * y, w)
        expected = 0.9 * expected + 0.1 * (scale * y @ w.T).mean((0, 1))
    torch.testing.assert_close(center(), expected)
    by_logits = DINOCenter(6)
    by_logits.update_(y @ w.T)
    torch.testing.assert_close(by_logits.value, 0.1 * (y @ w.T).mean((0, 1)))
    before = center.value.clone()
    center.update_(y[:, :0], w)
    assert torch.equal(center.value, before) and set(center.state_dict()) == {"value"}
    assert "num_prototypes=6" in repr(center)


def test_wrong_centers_are_named() -> None:
    with pytest.raises(ValueError, match=r"num_prototypes must be positive.*got num_prototypes=0"):
        DINOCenter(0)
    with pytest.raises(ValueError, match=r"teacher must have shape \[\.\.\., 4\].*got \[3, 5\]"):
        DINOCenter(6).update_(torch.ones(3, 5), torch.ones(6, 4))
