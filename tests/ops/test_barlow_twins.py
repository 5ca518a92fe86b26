"""Barlow Twins: every implementation against the paper's pseudocode, on the Gram and on the correlation side."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import BarlowTwinsLoss, barlow_twins
from ssl_fast.ops.barlow_twins import barlow_twins_reference

OP = "barlow_twins"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(32, 128), (128, 32), (33, 9), (9, 33), (2, 3), (50, 50), (49, 50)]
OPTIONS: list[dict[str, float]] = [{}, {"lambd": 1.0, "eps": 1e-3}]
NUMBERS = (0.0051, 1e-5)  # in the order of the registered op
# What value and gradients may lose, relative to their size; gradients in bf16 and fp16 their own rounding besides.
VALUE_ERROR, GRADIENT_ERROR = 2e-6, 1e-5


def views(num_rows: int, dim: int, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views [N, D] that differ by this much, their columns correlated, of different spread and mean; in float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    common = draw(num_rows, dim) @ (torch.eye(dim, dtype=torch.float64) + 0.3 * draw(dim, dim) / dim**0.5)
    spread, mean = 0.3 + 1.2 * torch.rand(dim, generator=generator, dtype=torch.float64), draw(dim)
    first, second = (common + noise * draw(num_rows, dim) for _ in range(2))
    return (first * spread + mean).requires_grad_(), (second * spread + mean).requires_grad_()


def of(impl: str, **options: Any) -> Callable[..., Tensor]:
    return lambda z1, z2: barlow_twins(z1, z2, impl=impl, **options)


def reference(**options: Any) -> Callable[..., Tensor]:
    return lambda z1, z2: barlow_twins_reference(z1, z2, **options)


# The equation


def pseudocode(z_a: Tensor, z_b: Tensor, lambda_: float) -> Tensor:
    """Zbontar et al. 2021, Algorithm 1, with the batch normalisation of the authors' code."""
    N, D = z_a.shape
    z_a_norm = F.batch_norm(z_a, None, None, training=True)
    z_b_norm = F.batch_norm(z_b, None, None, training=True)
    c = torch.mm(z_a_norm.T, z_b_norm) / N
    c_diff = (c - torch.eye(D, dtype=c.dtype)).pow(2)
    off_diagonal = ~torch.eye(D, dtype=torch.bool)
    return torch.where(off_diagonal, c_diff * lambda_, c_diff).sum()


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)], ids=["columns", "gram"])
def test_reference_is_the_papers_pseudocode(shape: tuple[int, int], checker) -> None:  # type: ignore[no-untyped-def]
    for lambd in (0.0051, 2.0):
        theirs = lambda a, b, weight=lambd: pseudocode(a, b, weight)  # noqa: E731
        ours = reference(lambd=lambd)
        for a, b in zip(checker.run(ours, views(*shape)), checker.run(theirs, views(*shape)), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)], ids=["gram", "columns"])
def test_gradients_are_lightlys(shape: tuple[int, int], impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    lightly = pytest.importorskip("lightly.loss")
    theirs = lightly.BarlowTwinsLoss(lambda_param=0.0051)
    for a, b in zip(checker.run(of(impl), views(*shape)), checker.run(theirs, views(*shape)), strict=True):
        torch.testing.assert_close(a, b)


def test_numbers_worked_by_hand(impl: str, device: str) -> None:
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], device=device)  # uncorrelated columns
    options = {"lambd": 3.0, "eps": 1e-12, "impl": impl}
    assert barlow_twins(5 * signs + 2, signs, **options).item() == pytest.approx(0, abs=1e-10)
    # Columns swapped: the diagonal is 0, both others 1.
    assert barlow_twins(signs, signs.flip(1), **options).item() == pytest.approx(2 + 3 * 2)
    wide = signs[:, [0, 0, 0, 1, 1]]  # the Gram side: 3 x 2 + 2 x 1 pairs of equal columns
    assert barlow_twins(wide, wide, **options).item() == pytest.approx(3 * (3 * 2 + 2))
    assert barlow_twins(wide, -wide, **options).item() == pytest.approx(5 * 4 + 3 * (3 * 2 + 2))


def test_shift_and_scale_play_no_part(impl: str, device: str) -> None:
    for shape in ((9, 30), (30, 9)):
        z1, z2 = (z.detach().to(device) for z in views(*shape))
        value, order = barlow_twins(z1, z2, eps=1e-12, impl=impl), torch.randperm(len(z1))
        torch.testing.assert_close(barlow_twins(z1 * 3 + 7, z2 / 5 - 1, eps=1e-12, impl=impl), value)
        torch.testing.assert_close(barlow_twins(z1[order], z2[order], eps=1e-12, impl=impl), value)


def test_columns_that_do_not_vary_are_finite(impl: str, device: str) -> None:
    for shape in ((9, 30), (30, 9), (1, 4)):
        z = torch.ones(shape, device=device, requires_grad=True)
        value = barlow_twins(z, z, impl=impl)
        value.backward()
        assert value.item() == pytest.approx(shape[1]) and z.grad is not None and z.grad.isfinite().all()


# Against float64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_by_the_rule(
    shape: tuple[int, int], dtype: torch.dtype, impl: str, device: str, checker
) -> None:  # type: ignore[no-untyped-def]
    for options in OPTIONS:
        checker.against(
            of(impl, **options), reference(**options), views(*shape), dtype, device, upstream=torch.tensor(3.0)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("noise", [1.0, 0.3, 0.05, 0.01])
@pytest.mark.parametrize("shape", [(48, 200), (200, 48), (99, 100)], ids=str)
def test_aligned_views(
    shape: tuple[int, int], noise: float, dtype: torch.dtype, impl: str, device: str, checker
) -> None:  # type: ignore[no-untyped-def]
    inputs = [z.detach().to(dtype) for z in views(*shape, noise)]
    exact = checker.run(reference(), [z.double().requires_grad_() for z in inputs])
    found = checker.run(of(impl), [z.to(device).requires_grad_() for z in inputs])
    bounds = (VALUE_ERROR, *(max(GRADIENT_ERROR, torch.finfo(dtype).eps * (dtype != torch.float32)),) * 2)
    for got, truth, bound in zip(found, exact, bounds, strict=True):
        assert (got - truth).norm() <= bound * truth.norm()


# Differentiation


@pytest.mark.parametrize("shape", [(4, 3), (3, 5)], ids=["columns", "gram"])
def test_gradcheck(shape: tuple[int, int], impl: str) -> None:
    inputs = views(*shape)
    assert torch.autograd.gradcheck(of(impl), inputs) and torch.autograd.gradgradcheck(of(impl), inputs)


def test_gradients_where_they_are_asked_for(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(9, 4))
    both = torch.autograd.grad(barlow_twins(z1.requires_grad_(), z2.requires_grad_(), impl=impl), (z1, z2))
    (alone,) = torch.autograd.grad(barlow_twins(z1.detach(), z2, impl=impl), z2)
    assert torch.equal(alone, both[1])
    assert not barlow_twins(z1.detach(), z2.detach(), impl=impl).requires_grad


def test_upstream_gradient_of_stride_zero_and_twice(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(9, 14))
    value = barlow_twins(z1.requires_grad_(), z2, impl=impl).expand(3)
    (first,) = torch.autograd.grad(value, z1, torch.ones(1, device=device).expand(3), retain_graph=True)
    assert torch.equal(first, torch.autograd.grad(value, z1, torch.ones_like(value))[0])


def test_transform_of_torch_func() -> None:
    z1, z2 = (z.detach() for z in views(5, 3))
    expected = torch.autograd.functional.jacobian(lambda a: barlow_twins_reference(a, z2), z1)
    torch.testing.assert_close(torch.func.grad(lambda a: barlow_twins(a, z2))(z1), expected)


# Kinds of inputs


@pytest.mark.parametrize("dim", [6, 40])
def test_not_contiguous(dim: int, impl: str, device: str) -> None:
    base = torch.randn(7, 2, 2 * dim, device=device).requires_grad_()
    z1, z2 = base[:, 0, ::2], base[:, 1, 1::2]
    dense = [z.detach().clone().requires_grad_() for z in (z1, z2)]
    value, expected = barlow_twins(z1, z2, impl=impl), barlow_twins(*dense, impl=impl)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    assert base.grad is not None
    torch.testing.assert_close(base.grad[:, 0, ::2], dense[0].grad)
    torch.testing.assert_close(base.grad[:, 1, 1::2], dense[1].grad)


def test_no_rows(impl: str, device: str) -> None:
    z1, z2 = (torch.zeros(0, 4, device=device, requires_grad=True) for _ in range(2))
    value = barlow_twins(z1, z2, impl=impl)
    value.backward()
    assert value == 0 and z1.grad is not None and z1.grad.shape == (0, 4)


def test_autocast_changes_nothing(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(16, 24))
    with torch.autocast(device, torch.bfloat16):
        value = barlow_twins(z1, z2, impl=impl)
    assert value.dtype == torch.float32 and torch.equal(value, barlow_twins(z1, z2, impl=impl))
    assert barlow_twins(z1.bfloat16(), z2, impl=impl).dtype == torch.float32


def test_the_same_bits_every_time(impl: str, device: str) -> None:
    for shape in ((65, 200), (200, 65)):
        z1, z2 = (z.detach().float().to(device).requires_grad_() for z in views(*shape))
        runs = []
        for _ in range(3):
            value = barlow_twins(z1, z2, impl=impl)
            runs.append((value.detach(), *torch.autograd.grad(value, (z1, z2))))
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_compiled_in_one_graph(backend: str, impl: str, device: str) -> None:
    torch._dynamo.reset()
    inputs = [z.detach().float().to(device).requires_grad_() for z in views(12, 20)]
    function = lambda a, b: barlow_twins(a * 2, b, impl=impl).square()  # noqa: E731
    value, expected = torch.compile(function, fullgraph=True, backend=backend)(*inputs), function(*inputs)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


def test_the_registered_op_keeps_torchs_rules(impl: str, device: str) -> None:
    for shape in ((6, 4), (4, 6)):
        inputs = [z.detach().float().to(device).requires_grad_() for z in views(*shape)]
        torch.library.opcheck(torch.ops.ssl_fast.barlow_twins, (*inputs, *NUMBERS, "", 1, impl, True))


# Arguments


def test_module_is_the_function(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(6, 4))
    for options in OPTIONS:
        assert torch.equal(BarlowTwinsLoss(impl=impl, **options)(z1, z2), barlow_twins(z1, z2, impl=impl, **options))
    assert "eps=0.5" in repr(BarlowTwinsLoss(eps=0.5))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(3), torch.ones(3)), {}, r"z1 must be floating point of shape \[N, D\].*\[3\]"),
        ((torch.ones(3, 2), torch.ones(4, 2)), {}, r"z2 must have the shape.*of z1.*got \[4, 2\]"),
        ((torch.ones(3, 2),) * 2, {"eps": 0.0}, r"eps must be positive, got 0\.0"),
        ((torch.ones(3, 2),) * 2, {"impl": "fast"}, "impl of barlow_twins must be .* got 'fast'"),
        ((torch.ones(3, 2),) * 2, {"grad_reduce": "max"}, "grad_reduce must be 'mean'.*got 'max'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Tensor, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        barlow_twins(*arguments, **options)
