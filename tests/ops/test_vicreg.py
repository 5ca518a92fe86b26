"""VICReg: every implementation against the paper's pseudocode, on the Gram and on the covariance side."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import VICRegLoss, vicreg
from ssl_fast.ops.vicreg import vicreg_reference

OP = "vicreg"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(32, 128), (128, 32), (33, 9), (9, 33), (2, 3), (50, 50), (49, 50)]
OPTIONS: list[dict[str, float]] = [
    {},
    {"invariance": 1.0, "variance": 3.0, "covariance": 20.0, "gamma": 2.0, "eps": 1e-2},
]
NUMBERS = (25.0, 25.0, 1.0, 1.0, 1e-4)  # in the order of the registered op
# What value and gradients may lose, relative to their size; gradients in bf16 and fp16 their own rounding besides.
VALUE_ERROR, GRADIENT_ERROR = 1e-6, 5e-6


def views(num_rows: int, dim: int, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views [N, D] that differ by this much, their columns correlated, of different spread and mean; in float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    common = draw(num_rows, dim) @ (torch.eye(dim, dtype=torch.float64) + 0.3 * draw(dim, dim) / dim**0.5)
    spread, mean = 0.3 + 1.2 * torch.rand(dim, generator=generator, dtype=torch.float64), draw(dim)
    first, second = (common + noise * draw(num_rows, dim) for _ in range(2))
    return (first * spread + mean).requires_grad_(), (second * spread + mean).requires_grad_()


def of(impl: str, **options: Any) -> Callable[..., Tensor]:
    return lambda z1, z2: vicreg(z1, z2, impl=impl, **options)


def reference(**options: Any) -> Callable[..., Tensor]:
    return lambda z1, z2: vicreg_reference(z1, z2, **options)


# The equation


def pseudocode(z_a: Tensor, z_b: Tensor, lambda_: float, mu: float, nu: float) -> Tensor:
    """Bardes et al. 2022, Algorithm 1."""
    N, D = z_a.shape
    sim_loss = F.mse_loss(z_a, z_b)
    std_z_a = torch.sqrt(z_a.var(dim=0) + 1e-04)
    std_z_b = torch.sqrt(z_b.var(dim=0) + 1e-04)
    std_loss = torch.mean(F.relu(1 - std_z_a))
    std_loss = std_loss + torch.mean(F.relu(1 - std_z_b))
    z_a = z_a - z_a.mean(dim=0)
    z_b = z_b - z_b.mean(dim=0)
    cov_z_a = (z_a.T @ z_a) / (N - 1)
    cov_z_b = (z_b.T @ z_b) / (N - 1)
    off_diagonal = ~torch.eye(D, dtype=torch.bool)
    cov_loss = cov_z_a[off_diagonal].pow(2).sum() / D + cov_z_b[off_diagonal].pow(2).sum() / D
    return lambda_ * sim_loss + mu * std_loss + nu * cov_loss


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)], ids=["columns", "gram"])
def test_reference_is_the_papers_pseudocode(shape: tuple[int, int], checker) -> None:  # type: ignore[no-untyped-def]
    for numbers in ((25.0, 25.0, 1.0), (1.0, 2.0, 30.0)):
        options = dict(zip(("invariance", "variance", "covariance"), numbers, strict=True))
        theirs = lambda a, b, n=numbers: pseudocode(a, b, *n)  # noqa: E731
        for a, b in zip(
            checker.run(reference(**options), views(*shape)), checker.run(theirs, views(*shape)), strict=True
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)], ids=["gram", "columns"])
def test_gradients_are_lightlys(shape: tuple[int, int], impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    lightly = pytest.importorskip("lightly.loss")
    ours = of(impl, variance=12.5)  # lightly takes the mean of both views' variance terms
    for a, b in zip(checker.run(ours, views(*shape)), checker.run(lightly.VICRegLoss(), views(*shape)), strict=True):
        torch.testing.assert_close(a, b)


def test_numbers_worked_by_hand(impl: str, device: str) -> None:
    # Columns (1, -1, 0) and (1, -1, 0): variances 1, covariance 1. The views differ by 1 in one of six numbers.
    z1 = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]], device=device)
    z2 = z1 + torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0]], device=device)
    assert vicreg(z1, z2, variance=0, covariance=0, invariance=2, impl=impl).item() == pytest.approx(2 * 9 / 6)
    assert vicreg(z1, z1, variance=0, covariance=3, impl=impl).item() == pytest.approx(3 * 2 * (1 + 1) / 2)
    value = vicreg(z1, z1, variance=5, covariance=0, gamma=3, eps=3, impl=impl)
    assert value.item() == pytest.approx(5 * 2 * (3 - 2))
    wide = torch.cat((z1, torch.zeros(3, 6, device=device)), 1)  # the Gram side: six columns that do not vary
    value = vicreg(wide, wide, variance=0, covariance=3, impl=impl)
    assert value.item() == pytest.approx(3 * 2 * (1 + 1) / 8)
    assert vicreg(wide, wide, covariance=0, gamma=1, eps=0.25, impl=impl).item() == pytest.approx(25 * 2 * 6 * 0.5 / 8)


def test_shifts_play_no_part_and_rows_come_in_any_order(impl: str, device: str) -> None:
    for shape in ((9, 30), (30, 9)):
        z1, z2 = (z.detach().to(device) for z in views(*shape))
        value, order = vicreg(z1, z2, impl=impl), torch.randperm(len(z1))
        torch.testing.assert_close(vicreg(z1 + 7, z2 + 7, impl=impl), value)
        torch.testing.assert_close(vicreg(z1[order], z2[order], impl=impl), value)
        torch.testing.assert_close(vicreg(z2, z1, impl=impl), value)


def test_collapsed_views_are_finite(impl: str, device: str) -> None:
    for shape in ((9, 30), (30, 9), (1, 4)):
        z = torch.ones(shape, device=device, requires_grad=True)
        value = vicreg(z, z, impl=impl)
        value.backward()
        assert value.item() == pytest.approx(50 * 0.99, rel=1e-6) and z.grad is not None and z.grad.isfinite().all()


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


def test_whitened_columns_keep_their_digits(impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    """N = D - 1 uncorrelated columns: ||C||^2 and the squares of its diagonal agree to one part in D."""
    z = torch.randn(255, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    white = (left @ right * 254**0.5).float()
    exact = checker.run(reference(variance=0.0), [white.double().requires_grad_(), white.double().requires_grad_()])
    found = checker.run(of(impl, variance=0.0), [white.to(device).requires_grad_(), white.to(device).requires_grad_()])
    for got, truth, bound in zip(found, exact, (5e-5, 1e-4, 1e-4), strict=True):
        assert (got - truth).norm() <= bound * truth.norm()


# Differentiation


@pytest.mark.parametrize("shape", [(4, 3), (3, 5)], ids=["columns", "gram"])
def test_gradcheck(shape: tuple[int, int], impl: str) -> None:
    inputs = views(*shape)
    assert torch.autograd.gradcheck(of(impl), inputs) and torch.autograd.gradgradcheck(of(impl), inputs)


def test_gradients_where_they_are_asked_for(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(9, 4))
    both = torch.autograd.grad(vicreg(z1.requires_grad_(), z2.requires_grad_(), impl=impl), (z1, z2))
    (alone,) = torch.autograd.grad(vicreg(z1.detach(), z2, impl=impl), z2)
    assert torch.equal(alone, both[1])
    assert not vicreg(z1.detach(), z2.detach(), impl=impl).requires_grad


def test_upstream_gradient_of_stride_zero_and_twice(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(9, 14))
    value = vicreg(z1.requires_grad_(), z2, impl=impl).expand(3)
    (first,) = torch.autograd.grad(value, z1, torch.ones(1, device=device).expand(3), retain_graph=True)
    assert torch.equal(first, torch.autograd.grad(value, z1, torch.ones_like(value))[0])


def test_transform_of_torch_func() -> None:
    z1, z2 = (z.detach() for z in views(5, 3))
    expected = torch.autograd.functional.jacobian(lambda a: vicreg_reference(a, z2), z1)
    torch.testing.assert_close(torch.func.grad(lambda a: vicreg(a, z2))(z1), expected)


# Kinds of inputs


@pytest.mark.parametrize("dim", [6, 40])
def test_not_contiguous(dim: int, impl: str, device: str) -> None:
    base = torch.randn(7, 2, 2 * dim, device=device).requires_grad_()
    z1, z2 = base[:, 0, ::2], base[:, 1, 1::2]
    dense = [z.detach().clone().requires_grad_() for z in (z1, z2)]
    value, expected = vicreg(z1, z2, impl=impl), vicreg(*dense, impl=impl)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    assert base.grad is not None
    torch.testing.assert_close(base.grad[:, 0, ::2], dense[0].grad)
    torch.testing.assert_close(base.grad[:, 1, 1::2], dense[1].grad)


def test_no_rows(impl: str, device: str) -> None:
    z1, z2 = (torch.zeros(0, 4, device=device, requires_grad=True) for _ in range(2))
    value = vicreg(z1, z2, impl=impl)
    value.backward()
    assert value == 0 and z1.grad is not None and z1.grad.shape == (0, 4)


def test_autocast_changes_nothing(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(16, 24))
    with torch.autocast(device, torch.bfloat16):
        value = vicreg(z1, z2, impl=impl)
    assert value.dtype == torch.float32 and torch.equal(value, vicreg(z1, z2, impl=impl))
    assert vicreg(z1.bfloat16(), z2, impl=impl).dtype == torch.float32


def test_the_same_bits_every_time(impl: str, device: str) -> None:
    for shape in ((65, 200), (200, 65)):
        z1, z2 = (z.detach().float().to(device).requires_grad_() for z in views(*shape))
        runs = []
        for _ in range(3):
            value = vicreg(z1, z2, impl=impl)
            runs.append((value.detach(), *torch.autograd.grad(value, (z1, z2))))
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_compiled_in_one_graph(backend: str, impl: str, device: str) -> None:
    torch._dynamo.reset()
    inputs = [z.detach().float().to(device).requires_grad_() for z in views(12, 20)]
    function = lambda a, b: vicreg(a * 2, b, impl=impl).square()  # noqa: E731
    value, expected = torch.compile(function, fullgraph=True, backend=backend)(*inputs), function(*inputs)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


def test_the_registered_op_keeps_torchs_rules(impl: str, device: str) -> None:
    for shape in ((6, 4), (4, 6)):
        inputs = [z.detach().float().to(device).requires_grad_() for z in views(*shape)]
        torch.library.opcheck(torch.ops.ssl_fast.vicreg, (*inputs, *NUMBERS, "", 1, impl, True))


# Arguments


def test_module_is_the_function(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(6, 4))
    for options in OPTIONS:
        assert torch.equal(VICRegLoss(impl=impl, **options)(z1, z2), vicreg(z1, z2, impl=impl, **options))
    assert "eps=0.5" in repr(VICRegLoss(eps=0.5))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(3), torch.ones(3)), {}, r"z1 must be floating point of shape \[N, D\].*\[3\]"),
        ((torch.ones(3, 2), torch.ones(4, 2)), {}, r"z2 must have the shape.*of z1.*got \[4, 2\]"),
        ((torch.ones(3, 2),) * 2, {"eps": 0.0}, r"eps must be positive, got 0\.0"),
        ((torch.ones(3, 2),) * 2, {"impl": "fast"}, "impl of vicreg must be .* got 'fast'"),
        ((torch.ones(3, 2),) * 2, {"grad_reduce": "max"}, "grad_reduce must be 'mean'.*got 'max'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Tensor, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vicreg(*arguments, **options)
