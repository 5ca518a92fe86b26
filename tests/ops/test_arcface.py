"""The margin losses: every implementation against the equation, for inputs of all kinds."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import arcface, combined_margin, cosface, curricularface
from ssl_fast.ops.arcface import arcface_reference
from tests.ops.margin_cases import LOSSES, samples

OP = "margin_softmax"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


# The equation


def test_reference_is_cross_entropy_of_the_logits_with_the_margin() -> None:
    x, weight, labels = samples(7, 9, 5)
    angles = (F.normalize(x) @ F.normalize(weight).T).acos()
    logits = torch.where(F.one_hot(labels, 9).bool(), (angles + 0.5).cos(), angles.cos()) * 64
    torch.testing.assert_close(arcface_reference(x, weight, labels), F.cross_entropy(logits, labels))


def test_numbers_worked_by_hand(impl: str, device: str) -> None:
    third = math.pi / 3
    x = torch.tensor([[math.cos(third), math.sin(third)]], device=device) * 5
    weight, labels = torch.eye(2, device=device) * 3, torch.tensor([0], device=device)
    cosine, negative = math.cos(third), math.sin(third)
    for value, phi in (
        (arcface(x, weight, labels, scale=2.0, impl=impl), math.cos(third + 0.5)),
        (cosface(x, weight, labels, scale=2.0, impl=impl), cosine - 0.35),
        (combined_margin(x, weight, labels, scale=2.0, m1=0.9, impl=impl), math.cos(0.9 * third + 0.3) - 0.2),
    ):
        assert value.item() == pytest.approx(math.log1p(math.exp(2 * (negative - phi))), rel=2e-6)
    hardness = torch.tensor(0.25, device=device)
    value = curricularface(x, weight, labels, hardness=hardness, scale=2.0, impl=impl)
    hard = negative * (0.25 + negative)  # 0.87 > cos(theta + m) = 0.02
    assert value.item() == pytest.approx(math.log1p(math.exp(2 * (hard - math.cos(third + 0.5)))), rel=2e-6)


@pytest.mark.parametrize("num_classes", [2, 7, 300])
def test_equal_classes_give_log_of_their_number(num_classes: int, impl: str, device: str) -> None:
    x, weight = torch.randn(1, 16, device=device), torch.ones(1, 16, device=device).expand(num_classes, -1)
    value = cosface(x, weight, torch.tensor([1], device=device), margin=0.0, impl=impl)
    assert value.item() == pytest.approx(math.log(num_classes), abs=64 * 1.2e-7)  # a cosine is rounded, times 64


def test_order_of_the_classes_plays_no_part(impl: str, device: str) -> None:
    x, weight, labels = (t.detach().to(device) for t in samples(9, 50, 8))
    value = arcface(x.float(), weight.float(), labels, impl=impl)
    torch.testing.assert_close(arcface(x.float(), weight.float().flip(0), 49 - labels, impl=impl), value)


def test_ignored_rows_are_not_there(impl: str, device: str) -> None:
    x, weight, labels = (t.detach().to(device) for t in samples(9, 50, 8))
    x.requires_grad_()
    labels[[2, 5]] = -100
    kept = labels != -100
    value = arcface(x, weight, labels, ignore_index=-100, impl="reference" if impl == "triton" else impl)
    torch.testing.assert_close(value, arcface(x[kept], weight, labels[kept], impl="reference"))
    rows = arcface(x, weight, labels, ignore_index=-100, reduction="none")
    (gradient,) = torch.autograd.grad(value, x)
    assert not rows[[2, 5]].any() and not gradient[[2, 5]].any() and gradient[kept].any(1).all()
    nothing = arcface(x, weight, torch.full_like(labels, -100), ignore_index=-100)
    assert nothing == 0 and not torch.autograd.grad(nothing, x)[0].any()


def test_one_class_has_no_loss(impl: str, device: str) -> None:
    x, weight = torch.randn(4, 5, device=device, requires_grad=True), torch.randn(1, 5, device=device).requires_grad_()
    labels = torch.zeros(4, dtype=torch.int64, device=device)
    for reduction in ("mean", "none"):
        value = arcface(x, weight, labels, reduction=reduction, impl=impl).sum()
        gradients = torch.autograd.grad(value, (x, weight))
        assert value == 0 and not any(g.any() for g in gradients)


# Against float64


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(32, 500, 64, 1), (33, 7, 9, 1), (1, 2, 1, 1), (200, 401, 20, 3)], ids=str)
def test_value_and_gradients_by_the_rule(  # type: ignore[no-untyped-def]
    shape: tuple[int, int, int, int], dtype: torch.dtype, name: str, impl: str, device: str, checker
) -> None:
    op, reference = LOSSES[name]
    *inputs, labels = samples(*shape)
    for reduction in ("mean", "none"):
        options: dict[str, Any] = {"scale": 16.0, "reduction": reduction}
        rows = torch.rand(len(labels), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        upstream = rows if reduction == "none" else torch.tensor(3.0)

        def ours(x: Tensor, weight: Tensor, options: dict[str, Any] = options) -> Tensor:
            return op(x, weight, labels.to(x.device), impl=impl, **options)

        def theirs(x: Tensor, weight: Tensor, options: dict[str, Any] = options) -> Tensor:
            return reference(x, weight, labels, **options)

        checker.against(ours, theirs, inputs, dtype, device, upstream)


def without_cancellation(x: Tensor, weight: Tensor, labels: Tensor, scale: float) -> Tensor:
    """The truth for aligned rows: logsumexp - s phi has no digit left where the loss is 1e-15, even in float64."""
    cosine = F.normalize(x) @ F.normalize(weight).T
    own = F.one_hot(labels, weight.shape[0]).bool()
    negatives = (cosine * scale).masked_fill(own, -torch.inf).logsumexp(1)
    return F.softplus(negatives - scale * (cosine[own].acos() + 0.5).cos(), threshold=60).mean()


# What loss and gradients may lose, relative to their size. In bf16 and fp16 it is the rounding of the gradient itself.
# In fp32, at alignment 0.99 the slope of the margin (4.2) and the scale multiply the rounding of one cosine.
SWEEP = {torch.float32: (5e-5, 5e-5), torch.bfloat16: (5e-5, 3e-3), torch.float16: (5e-5, 6e-4)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [0.0, 0.7, 0.9, 0.99])
def test_aligned_rows(alignment: float, dtype: torch.dtype, impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    *tensors, labels = samples(48, 500, 64, alignment=alignment)
    inputs = [t.detach().to(dtype).requires_grad_() for t in tensors]
    for scale in (4.0, 16.0, 30.0, 64.0, 150.0):
        truth = lambda x, w, s=scale: without_cancellation(x, w, labels, s)  # noqa: E731
        ours = lambda x, w, s=scale: arcface(x, w, labels.to(x.device), scale=s, impl=impl)  # noqa: E731
        wanted = checker.run(truth, [t.detach().double().requires_grad_() for t in inputs])
        # Scaled so that fp16 can hold the gradient, as a loss scale does.
        size = 100 / torch.cat(wanted[1:]).norm()
        found = checker.run(ours, [t.detach().to(device).requires_grad_() for t in inputs], size.float())
        assert (found[0] - wanted[0]).abs() <= SWEEP[dtype][0] * wanted[0], f"loss at scale {scale}"
        error = (torch.cat(found[1:]) - torch.cat(wanted[1:]) * size.float()).norm()
        assert error <= SWEEP[dtype][1] * 100, f"gradient at scale {scale}"


def test_scale_has_a_gradient(impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    *inputs, labels = samples(20, 40, 12, centres=2)
    labels[3] = -1
    for name, (op, reference) in LOSSES.items():
        for reduction in ("mean", "sum", "none"):
            checker.against(
                lambda x, w, s, op=op, r=reduction: op(x, w, labels.to(x.device), scale=s, reduction=r, impl=impl),
                lambda x, w, s, f=reference, r=reduction: f(x, w, labels, scale=s, reduction=r),
                (*inputs, torch.tensor(9.0, dtype=torch.float64, requires_grad=True)),
                torch.float32,
                device,
            )
            assert name


# Differentiation


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize: bool, name: str, impl: str) -> None:
    if impl == "triton":
        pytest.skip("the Triton kernels have no float64")
    if name == "straight through":
        pytest.skip("its gradient is not that of its value: tested in test_margins.py")
    *inputs, labels = samples(3, 4, 2, centres=2)
    if not normalize:
        inputs = [F.normalize(t.detach(), dim=-1).mul(0.9).requires_grad_() for t in inputs]
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    for reduction in ("mean", "none"):

        def function(x: Tensor, weight: Tensor, scale: Tensor, reduction: str = reduction) -> Tensor:
            options = {"scale": scale, "normalize": normalize, "reduction": reduction, "impl": impl}
            # The length of x sets AdaFace's margin, but no gradient flows there: perturb the direction alone.
            return LOSSES[name][0](x if name != "adaface" else F.normalize(x), weight, labels, **options)

        assert torch.autograd.gradcheck(function, (*inputs, scale))
        assert torch.autograd.gradgradcheck(function, (*inputs, scale), fast_mode=True)


def test_upstream_gradient_of_stride_zero_and_twice(impl: str, device: str) -> None:
    x, weight, labels = samples(9, 20, 4)
    x, weight = (t.detach().float().to(device).requires_grad_() for t in (x, weight))
    rows = arcface(x, weight, labels.to(device), reduction="none", impl=impl)
    stretched = torch.ones(1, device=device).expand(9)
    first = torch.autograd.grad(rows, (x, weight), stretched, retain_graph=True)
    again = torch.autograd.grad(rows, (x, weight), torch.ones_like(rows))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_only_what_asks_gets_a_gradient(impl: str, device: str) -> None:
    x, weight, labels = (t.detach().to(device) for t in samples(9, 20, 4))
    x, weight = x.float().requires_grad_(), weight.float()
    arcface(x, weight, labels, impl=impl).backward()
    assert x.grad is not None and weight.grad is None
    assert not arcface(x.detach(), weight, labels, impl=impl).requires_grad


def test_transform_of_torch_func() -> None:
    x, weight, labels = (t.detach() for t in samples(5, 7, 3))
    expected = torch.autograd.functional.jacobian(lambda a: arcface_reference(a, weight, labels), x)
    torch.testing.assert_close(torch.func.grad(lambda a: arcface(a, weight, labels))(x), expected)
    with pytest.raises(RuntimeError, match=r"sample no classes inside torch.func transforms, got sample_rate=0.5"):
        torch.func.grad(lambda a: arcface(a, weight, labels, sample_rate=0.5))(x)


# Kinds of inputs


def test_not_contiguous(impl: str, device: str) -> None:
    base, classes = torch.randn(7, 10, device=device).requires_grad_(), torch.randn(5, 30, device=device)
    x, weight = base[:, ::2], classes.T[::2].requires_grad_()
    labels = torch.arange(14, device=device)[::2]
    dense = (x.detach().clone().requires_grad_(), weight.detach().contiguous().requires_grad_())
    value, expected = arcface(x, weight, labels, impl=impl), arcface(*dense, labels.contiguous(), impl=impl)
    found, wanted = torch.autograd.grad(value, (base, weight)), torch.autograd.grad(expected, dense)
    torch.testing.assert_close((value, found[0][:, ::2], found[1]), (expected, *wanted))


def test_no_rows(impl: str, device: str) -> None:
    x, weight = torch.zeros(0, 4, device=device).requires_grad_(), torch.randn(5, 4, device=device).requires_grad_()
    labels = torch.zeros(0, dtype=torch.int64, device=device)
    value = arcface(x, weight, labels, impl=impl)
    value.backward()
    assert value == 0 and x.grad is not None and x.grad.shape == (0, 4)
    assert weight.grad is not None and not weight.grad.any()
    assert arcface(x, weight, labels, reduction="none", impl=impl).shape == (0,)


def test_zero_rows_stay_finite(impl: str, device: str) -> None:
    x, weight, labels = (t.detach().to(device) for t in samples(6, 8, 4))
    x, weight = x.float(), weight.float()
    x[2], weight[3], weight[labels[0]] = 0, 0, 0
    x.requires_grad_(), weight.requires_grad_()
    value = arcface(x, weight, labels, impl=impl)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(value, (x, weight)))


def test_rows_on_their_centre_stay_finite(impl: str, device: str) -> None:
    """At theta = 0 the slope of cos(theta + m) in the cosine is infinite; the clamp keeps it at 341."""
    weight, labels = torch.randn(6, 4, device=device), torch.arange(6, device=device)
    for sign in (1, -1):
        x = (weight * sign * 2).requires_grad_()
        value = arcface(x, weight, labels, impl=impl)
        assert bool(torch.autograd.grad(value, x)[0].isfinite().all())


def test_dtypes_may_differ_and_autocast_changes_nothing(impl: str, device: str) -> None:
    x, weight, labels = (t.detach().to(device) for t in samples(16, 30, 8))
    x, weight = x.float(), weight.float()
    with torch.autocast(device, torch.bfloat16):
        value = arcface(x, weight, labels, impl=impl)
    assert value.dtype == torch.float32 and torch.equal(value, arcface(x, weight, labels, impl=impl))
    low, classes = x.bfloat16().requires_grad_(), weight.requires_grad_()
    value = arcface(low, classes, labels, impl=impl)
    gradients = torch.autograd.grad(value, (low, classes))
    assert value.dtype == torch.float32 and [g.dtype for g in gradients] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(value, arcface(low.float(), classes, labels, impl=impl))


def test_the_same_bits_every_time(impl: str, device: str) -> None:
    x, weight, labels = (t.detach().to(device) for t in samples(65, 3000, 40))
    x, weight = x.float().requires_grad_(), weight.float().requires_grad_()
    runs = []
    for _ in range(3):
        value = arcface(x, weight, labels, impl=impl)
        runs.append((value.detach(), *torch.autograd.grad(value, (x, weight))))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_in_one_graph(reduction: str, backend: str, impl: str, device: str) -> None:
    torch._dynamo.reset()
    x, weight, labels = (t.detach().to(device) for t in samples(12, 30, 8))
    inputs = (x.float().requires_grad_(), weight.float().requires_grad_(), torch.tensor(9.0, device=device))
    inputs[2].requires_grad_()

    def function(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        hardness = scale.detach() * 0.02
        one = arcface(x * 2, weight, labels, scale=scale, reduction=reduction, impl=impl)
        return (one + curricularface(x, weight, labels, hardness=hardness, reduction=reduction, impl=impl)).square()

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    value, expected = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(value, expected)
    found, wanted = (torch.autograd.grad(v.sum(), inputs) for v in (value, expected))
    torch.testing.assert_close(found, wanted)


def test_the_registered_ops_keep_torchs_rules(impl: str, device: str) -> None:
    x, weight, labels = (t.detach().to(device) for t in samples(6, 9, 4))
    leaves = x.float().requires_grad_(), weight.float()[:, None].requires_grad_()
    rest = (labels, None, None, 5.0, [1.0, 0.5, 0.0], [False, True, True], "", impl)
    scale = torch.tensor(9.0, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.ssl_fast.margin_softmax, (*leaves, scale, *rest, True, 1, True))
    torch.library.opcheck(torch.ops.ssl_fast.margin_softmax_rows, (*leaves, None, *rest, 1))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(3), torch.ones(4, 2), torch.zeros(3).long()), {}, r"x must be floating point of shape \[N, D\]"),
        ((torch.ones(3, 2), torch.ones(4, 3), torch.zeros(3).long()), {}, r"weight must .*\[C, 2\].*got .*\[4, 3\]"),
        ((torch.ones(3, 2), torch.ones(4, 2), torch.zeros(2).long()), {}, r"labels must be int64.*\[3\].*\[2\]"),
        ((torch.ones(3, 2), torch.ones(4, 2), torch.zeros(3)), {}, "labels must be int64.*got torch.float32"),
        ((torch.ones(1, 2), torch.ones(4, 2), torch.tensor([4])), {}, r"labels must lie in \[0, 4\).*got 4"),
        ((torch.ones(1, 2), torch.ones(4, 2), torch.tensor([-2])), {}, "ignore_index=-1, got -2"),
        ((torch.ones(1, 2),) * 2 + (torch.zeros(1).long(),), {"scale": 0.0}, "scale must be positive, got 0"),
        ((torch.ones(1, 2),) * 2 + (torch.zeros(1).long(),), {"margin_grad": "none"}, "margin_grad must be 'exact'"),
        ((torch.ones(1, 2),) * 2 + (torch.zeros(1).long(),), {"sample_rate": 0.0}, r"sample_rate must lie in \(0, 1\]"),
        ((torch.ones(1, 2),) * 2 + (torch.zeros(1).long(),), {"reduction": "avg"}, "reduction must be .* got 'avg'"),
        ((torch.ones(1, 2),) * 2 + (torch.zeros(1).long(),), {"impl": "fast"}, "impl of margin_softmax must be"),
        ((torch.ones(1, 2),) * 2 + (torch.zeros(1).long(),), {"grad_reduce": "max"}, "grad_reduce must be 'mean'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Tensor, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arcface(*arguments, **options)
