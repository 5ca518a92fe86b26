"""NT-Xent: every implementation against the equation, and the equation against the paper's own loop."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import nt_xent
from ssl_fast.ops.nt_xent import nt_xent_reference

OP = "nt_xent"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def views(
    num_rows: int, dim: int, alignment: float = 0.5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Two views [N, D] whose rows have about this cosine, with lengths between 0.5 and 2."""
    generator = torch.Generator().manual_seed(seed)
    first, noise = (torch.randn(num_rows, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    first, noise = F.normalize(first), F.normalize(noise)
    second = alignment * first + math.sqrt(1 - alignment**2) * noise
    lengths = torch.rand(2, num_rows, 1, generator=generator, dtype=torch.float64) * 1.5 + 0.5
    z1, z2 = (first * lengths[0]).to(dtype), (second * lengths[1]).to(dtype)
    return z1.requires_grad_(), z2.requires_grad_()


def of(impl: str, **options: Any) -> Callable[..., Tensor]:
    return lambda z1, z2: nt_xent(z1, z2, impl=impl, **options)


def reference(**options: Any) -> Callable[..., Tensor]:
    return lambda z1, z2: nt_xent_reference(z1, z2, **options)


def paper_loop(z1: Tensor, z2: Tensor, temperature: float) -> float:
    """Algorithm 1 of the paper, letter by letter: rows 2k-1 and 2k are the views of sample k."""
    z = [row.tolist() for pair in zip(z1, z2, strict=True) for row in pair]

    def s(i: int, j: int) -> float:
        product = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return product / (math.hypot(*z[i]) * math.hypot(*z[j]))

    def pair_loss(i: int, j: int) -> float:
        below = sum(math.exp(s(i, k) / temperature) for k in range(len(z)) if k != i)
        return -math.log(math.exp(s(i, j) / temperature) / below)

    pairs = range(len(z1))
    return sum(pair_loss(2 * k, 2 * k + 1) + pair_loss(2 * k + 1, 2 * k) for k in pairs) / (2 * len(z1))


# The equation


def test_reference_is_the_loop_of_the_paper() -> None:
    z1, z2 = views(6, 5)
    for temperature in (0.07, 0.5, 1.0):
        expected = paper_loop(z1, z2, temperature)
        assert nt_xent_reference(z1, z2, temperature).item() == pytest.approx(expected, rel=1e-13)


def test_implementation_is_the_loop_of_the_paper(impl: str, device: str) -> None:
    z1, z2 = views(6, 5, dtype=torch.float32)
    value = nt_xent(z1.to(device), z2.to(device), temperature=0.5, impl=impl)
    assert value.item() == pytest.approx(paper_loop(z1, z2, 0.5), rel=1e-6)


def test_numbers_worked_by_hand(impl: str, device: str) -> None:
    eye = torch.eye(4, device=device)
    # cosine 1 with the positive, 0 with the 6 others
    assert nt_xent(eye, eye, temperature=1.0, impl=impl).item() == pytest.approx(math.log(math.e + 6) - 1, rel=1e-6)
    # e^2 / (e^2 + 2 e^0), lengths 3 and 5 play no part
    two = torch.eye(2, device=device)
    expected = math.log(math.exp(2) + 2) - 2
    assert nt_xent(3 * two, 5 * two, temperature=0.5, impl=impl).item() == pytest.approx(expected, rel=1e-6)
    # without normalisation: s = 15 / 10 for the positive; row 1 of view 1 sees 0 and 0
    expected = math.log(math.exp(1.5) + 2) - 1.5
    value = nt_xent(3 * two, 5 * two, temperature=10.0, normalize=False, impl=impl)
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_rows", [2, 5, 64, 129])
def test_identical_embeddings_give_log_of_the_others(num_rows: int, impl: str, device: str) -> None:
    same = torch.ones(num_rows, 16, device=device)
    value = nt_xent(same, same, temperature=0.1, impl=impl)
    assert value.item() == pytest.approx(math.log(2 * num_rows - 1), rel=1e-6)


def test_order_of_samples_and_of_views_plays_no_part(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(33, 8))
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    rows = nt_xent(z1, z2, reduction="none", impl=impl)
    torch.testing.assert_close(nt_xent(z1[order], z2[order], reduction="none", impl=impl), rows[:, order])
    torch.testing.assert_close(nt_xent(z2, z1, reduction="none", impl=impl), rows.flip(0))


def test_length_of_rows_plays_no_part_and_gradients_are_tangent(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device).requires_grad_() for z in views(16, 8))
    value = nt_xent(z1, z2, impl=impl)
    torch.testing.assert_close(nt_xent(z1 * 7, z2 / 3, impl=impl), value)
    (gradient,) = torch.autograd.grad(value, z1)
    assert (gradient * z1).sum(1).abs().max() < 1e-6 * gradient.norm()


# Against float64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (33, 7), (1, 5), (2, 1), (130, 65)], ids=str)
def test_value_and_gradients_by_the_rule(
    shape: tuple[int, int], dtype: torch.dtype, impl: str, device: str, checker
) -> None:  # type: ignore[no-untyped-def]
    for reduction in ("mean", "sum", "none"):
        options = {"temperature": 0.2, "reduction": reduction}
        generator = torch.Generator().manual_seed(2)
        rows = torch.rand(2, shape[0], dtype=torch.float64, generator=generator)
        upstream = rows if reduction == "none" else torch.tensor(3.0)
        checker.against(of(impl, **options), reference(**options), views(*shape), dtype, device, upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_as_they_are(dtype: torch.dtype, impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    options = {"temperature": 0.5, "normalize": False}
    checker.against(of(impl, **options), reference(**options), views(40, 24), dtype, device)


def without_cancellation(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """The truth for aligned views, whose loss may be 1e-15: log l - s_positive loses it, even in float64."""
    z, n = F.normalize(torch.cat((z1, z2)), dim=1), len(z1)
    logits = z @ z.T / temperature
    row, positive = torch.arange(2 * n), torch.arange(2 * n).roll(n)
    negatives = logits.masked_fill((row[:, None] == row) | (positive[:, None] == row), -torch.inf)
    return F.softplus(negatives.logsumexp(1) - logits[row, positive], threshold=60).mean()


# What loss and gradients may lose, relative to their size. In bf16 and fp16 it is the rounding of the gradient itself.
SWEEP = {torch.float32: (5e-6, 1e-5), torch.bfloat16: (5e-6, 2e-3), torch.float16: (5e-6, 5e-4)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [0.0, 0.7, 0.9, 0.99])
def test_aligned_views(alignment: float, dtype: torch.dtype, impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    for temperature in (0.02, 0.05, 0.07, 0.1, 0.2, 0.5):
        z1, z2 = (z.detach().to(dtype).requires_grad_() for z in views(256, 128, alignment))
        options = {"temperature": temperature}
        truth = lambda a, b, t=temperature: without_cancellation(a, b, t)  # noqa: E731
        checker.against(of(impl, **options), reference(**options), (z1, z2), dtype, device, truth=truth)
        # Scaled so that fp16 can hold the gradient, as a loss scale does.
        wanted = checker.run(truth, [z.detach().double().requires_grad_() for z in (z1, z2)])
        scale = 100 / torch.cat(wanted[1:]).norm()
        inputs = [z.detach().to(device).requires_grad_() for z in (z1, z2)]
        found = checker.run(of(impl, **options), inputs, scale.float())
        assert (found[0] - wanted[0]).abs() <= SWEEP[dtype][0] * wanted[0], f"loss at temperature {temperature}"
        gradients = torch.cat(found[1:]), torch.cat(wanted[1:]) * scale.float()
        assert (gradients[0] - gradients[1]).norm() <= SWEEP[dtype][1] * 100, f"gradient at temperature {temperature}"


def test_weights_and_temperature_have_gradients(impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    weight = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for reduction in ("mean", "sum", "none"):

        def ours(z1: Tensor, z2: Tensor, w: Tensor, t: Tensor, reduction: str = reduction) -> Tensor:
            return nt_xent(z1, z2, weight=w, temperature=t, reduction=reduction, impl=impl)

        def theirs(z1: Tensor, z2: Tensor, w: Tensor, t: Tensor, reduction: str = reduction) -> Tensor:
            return nt_xent_reference(z1, z2, weight=w, temperature=t, reduction=reduction)

        checker.against(ours, theirs, (*views(20, 12), weight, temperature), torch.float32, device)


def test_weights_select_what_is_averaged_not_what_is_compared(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(10, 6))
    weight = torch.zeros(10, device=device)
    weight[3] = 5.0
    rows = nt_xent(z1, z2, reduction="none", impl=impl)
    torch.testing.assert_close(nt_xent(z1, z2, weight=weight, impl=impl), rows[:, 3].mean())
    assert nt_xent(z1, z2, weight=weight * 0, impl=impl) == 0


# Differentiation


def float64_impls(impl: str) -> None:
    if impl == "triton":
        pytest.skip("the Triton kernels have no float64")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize: bool, reduction: str, impl: str) -> None:
    float64_impls(impl)
    z1, z2 = views(4, 3)
    weight = torch.rand(4, dtype=torch.float64).requires_grad_()
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def function(z1: Tensor, z2: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return nt_xent(z1, z2, weight=w, temperature=t, normalize=normalize, reduction=reduction, impl=impl)

    assert torch.autograd.gradcheck(function, (z1, z2, weight, temperature))
    assert torch.autograd.gradgradcheck(function, (z1, z2, weight, temperature))


def test_gradcheck_of_the_reference() -> None:
    inputs = (*views(4, 3), torch.tensor(0.4, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(nt_xent_reference, inputs)
    assert torch.autograd.gradgradcheck(nt_xent_reference, inputs)


def test_one_tensor_as_both_views(impl: str, device: str) -> None:
    z = views(8, 4)[0].detach().float().to(device).requires_grad_()
    (ours,) = torch.autograd.grad(nt_xent(z, z, impl=impl), z, create_graph=True)
    (plain,) = torch.autograd.grad(nt_xent_reference(z, z), z)
    torch.testing.assert_close(ours, plain)


def test_gradients_may_be_asked_for_twice_and_scaled(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device).requires_grad_() for z in views(9, 4))
    value = nt_xent(z1, z2, impl=impl)
    (once,) = torch.autograd.grad(value, z1, retain_graph=True)
    (again,) = torch.autograd.grad(value * 4, z1, retain_graph=True)
    assert torch.equal(again, once * 4)
    assert torch.equal(torch.autograd.grad(value, z1)[0], once)


def test_upstream_gradient_of_stride_zero(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device).requires_grad_() for z in views(9, 4))
    rows = nt_xent(z1, z2, reduction="none", impl=impl)
    upstream = torch.ones(1, 1, device=device).expand_as(rows)
    (stretched,) = torch.autograd.grad(rows, z1, upstream, retain_graph=True)
    assert torch.equal(stretched, torch.autograd.grad(rows, z1, torch.ones_like(rows))[0])
    torch.testing.assert_close(stretched, torch.autograd.grad(nt_xent(z1, z2, reduction="sum", impl=impl), z1)[0])


def test_only_what_requires_a_gradient_gets_one(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(9, 4))
    assert not nt_xent(z1, z2, impl=impl).requires_grad
    z1.requires_grad_()
    with torch.no_grad():
        assert not nt_xent(z1, z2, impl=impl).requires_grad
    nt_xent(z1, z2, impl=impl).backward()
    assert z1.grad is not None and z2.grad is None
    temperature = torch.tensor(0.5, device=device, requires_grad=True)
    nt_xent(z1.detach(), z2, temperature=temperature, impl=impl).backward()
    assert temperature.grad is not None and temperature.grad.shape == ()


def test_fp16_gradients_are_scaled_before_they_are_rounded(impl: str, device: str) -> None:
    z1, z2 = (z.detach().half().to(device).requires_grad_() for z in views(512, 16, 0.95))
    value = nt_xent(z1, z2, temperature=0.05, impl=impl)
    (scaled,) = torch.autograd.grad(value * 65536.0, z1)
    exact = nt_xent_reference(z1.double(), z2.double(), 0.05) * 65536.0
    (wanted,) = torch.autograd.grad(exact, z1)
    assert (scaled.double() - wanted.double()).norm() <= 4e-3 * wanted.double().norm()


@pytest.mark.parametrize("transform", ["grad", "vmap", "jacrev"])
def test_transforms_of_torch_func(transform: str) -> None:
    z1, z2 = (z.detach() for z in views(5, 3))
    expected = torch.autograd.functional.jacobian(lambda a: nt_xent_reference(a, z2), z1)
    if transform == "vmap":
        batch = torch.stack((z1, z2))
        rows = torch.func.vmap(lambda a: nt_xent(a, z2))(batch)
        torch.testing.assert_close(rows, torch.stack([nt_xent_reference(a, z2) for a in batch]))
    else:
        found = getattr(torch.func, transform)(lambda a: nt_xent(a, z2))(z1)
        torch.testing.assert_close(found, expected)


# Kinds of inputs


def test_not_contiguous(impl: str, device: str) -> None:
    base = torch.randn(7, 2, 10, device=device).requires_grad_()
    z1, z2 = base[:, 0, ::2], base[:, 1, 1::2]
    dense = (z1.detach().clone().requires_grad_(), z2.detach().clone().requires_grad_())
    value, expected = nt_xent(z1, z2, impl=impl), nt_xent(*dense, impl=impl)
    value.backward()
    expected.backward()
    assert torch.equal(value, expected) and base.grad is not None
    assert torch.equal(base.grad[:, 0, ::2], dense[0].grad) and torch.equal(base.grad[:, 1, 1::2], dense[1].grad)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(reduction: str, impl: str, device: str) -> None:
    z = torch.zeros(0, 4, device=device, requires_grad=True)
    value = nt_xent(z, z.detach(), reduction=reduction, impl=impl)
    assert value.shape == ((2, 0) if reduction == "none" else ()) and value.sum() == 0
    value.sum().backward()
    assert z.grad is not None and z.grad.shape == (0, 4)


def test_one_sample_has_no_negative(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device).requires_grad_() for z in views(1, 4))
    value = nt_xent(z1, z2, impl=impl)
    value.backward()
    assert value == 0 and z1.grad is not None and not z1.grad.any()


def test_zero_rows_stay_finite(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(6, 4))
    z1[2] = 0
    z1.requires_grad_()
    value = nt_xent(z1, z2, temperature=0.5, impl=impl)
    value.backward()
    assert z1.grad is not None and bool(z1.grad.isfinite().all())
    torch.testing.assert_close(value.cpu(), nt_xent_reference(z1.double(), z2.double(), 0.5).float().cpu())


@pytest.mark.parametrize("factor", [1e-20, 8e-13, 1e-8, 1e15])
def test_rows_of_any_length(factor: float, impl: str, device: str) -> None:
    """Around 1e-12 some norms are clamped: the row is shorter than 1, and its gradient is not projected."""
    z1, z2 = (z.detach().float().to(device) for z in views(6, 4))
    z1 = (z1 * factor).requires_grad_()
    exact = z1.detach().double().requires_grad_()
    value, expected = nt_xent(z1, z2, impl=impl), nt_xent_reference(exact, z2.double())
    torch.testing.assert_close(value, expected.float())
    (found,), (wanted,) = torch.autograd.grad(value, z1), torch.autograd.grad(expected, exact)
    # The product of two small numbers may be below what fp32 holds: only what is normal there is compared.
    assert (found.double() - wanted).norm() <= 1e-5 * wanted.norm() + 1e-37


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype, impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device).requires_grad_() for z in views(16, 8))
    expected = nt_xent(z1, z2, impl=impl)
    with torch.autocast(device, dtype):
        value = nt_xent(z1, z2, impl=impl)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    low = nt_xent(z1.to(dtype), z2.to(dtype), impl=impl)
    assert low.dtype == torch.float32


def test_the_same_bits_every_time(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device).requires_grad_() for z in views(300, 40))
    runs = []
    for _ in range(3):
        value = nt_xent(z1, z2, impl=impl)
        runs.append((value.detach(), *torch.autograd.grad(value, (z1, z2))))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_in_place_change_of_an_input_does_not_change_the_gradient_silently(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(6, 4))
    leaf = z1.clone().requires_grad_()
    hidden = leaf * 1
    value = nt_xent(hidden, z2, impl=impl)
    with torch.no_grad():
        hidden.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, leaf)
