"""BYOL's squared distance and SimSiam's negative cosine: every implementation against the equations."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import BYOLLoss, SimSiamLoss, byol_loss, simsiam_loss
from ssl_fast.ops.byol import byol_reference

OP = "byol"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pairs(num_rows: int, dim: int, alignment: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Predictions, which want a gradient, and targets [N, D] of about this cosine, in float64."""
    generator = torch.Generator().manual_seed(seed)
    first, noise = (F.normalize(torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)) for _ in "pz")
    second = alignment * first + math.sqrt(1 - alignment**2) * noise
    lengths = torch.rand(2, num_rows, 1, generator=generator, dtype=torch.float64) * 1.5 + 0.5
    return (first * lengths[0]).requires_grad_(), second * lengths[1]


def of(impl: str, **options: Any) -> Callable[..., Tensor]:
    return lambda p, z: byol_loss(p, z, impl=impl, **options)


def reference(**options: Any) -> Callable[..., Tensor]:
    return lambda p, z: byol_reference(p, z, **options)


# The equation


def byol_pseudocode(p: Tensor, z: Tensor) -> Tensor:
    """Grill et al. 2020, Eq. 2, its right-hand side."""
    return 2 - 2 * (p * z).sum(1) / (p.norm(dim=1) * z.norm(dim=1))


def simsiam_pseudocode(p: Tensor, z: Tensor) -> Tensor:
    """Chen and He 2021, Algorithm 1: D(p, z)."""
    z = z.detach()
    p = F.normalize(p, dim=1)
    z = F.normalize(z, dim=1)
    return -(p * z).sum(dim=1).mean()


def test_reference_is_the_papers_equation(checker) -> None:  # type: ignore[no-untyped-def]
    p, z = pairs(7, 5)
    torch.testing.assert_close(byol_reference(p, z, reduction="none"), byol_pseudocode(p, z))
    assert byol_reference(p, z, normalize=False).item() == pytest.approx((p - z).square().sum().item() / 7)


def test_simsiam_is_the_papers_pseudocode(impl: str, device: str) -> None:
    p, z = (t.detach().to(device) for t in pairs(7, 5))
    p.requires_grad_()
    ours, theirs = simsiam_loss(p, z, impl=impl), simsiam_pseudocode(p, z)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, p), torch.autograd.grad(theirs, p))


def test_numbers_worked_by_hand(impl: str, device: str) -> None:
    p = torch.tensor([[3.0, 4.0], [2.0, 0.0], [1.0, 1.0]], device=device)
    z = torch.tensor([[5.0, 0.0], [-7.0, 0.0], [9.0, 9.0]], device=device)  # cosines 0.6, -1 and 1
    torch.testing.assert_close(byol_loss(p, z, reduction="none", impl=impl).cpu(), torch.tensor([0.8, 4.0, 0.0]))
    torch.testing.assert_close(simsiam_loss(p, z, reduction="none", impl=impl).cpu(), torch.tensor([-0.6, 1.0, -1.0]))
    weight = torch.tensor([3.0, 1.0, 0.0], device=device)
    assert byol_loss(p, z, weight=weight, impl=impl).item() == pytest.approx((3 * 0.8 + 4) / 4)
    assert simsiam_loss(p, z, weight=weight, reduction="sum", impl=impl).item() == pytest.approx(3 * -0.6 + 1)


def test_lengths_play_no_part_and_gradients_stand_upright(impl: str, device: str) -> None:
    p, z = (t.detach().float().to(device) for t in pairs(9, 6))
    p.requires_grad_()
    value = byol_loss(p, z, impl=impl)
    (gradient,) = torch.autograd.grad(value, p)
    torch.testing.assert_close(byol_loss(p * 8, z * 0.25, impl=impl), value)
    assert (gradient * p).sum(1).abs().max() < 1e-7


# Against float64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 256), (33, 9), (1, 1), (5, 1030), (300, 64)], ids=str)
def test_value_and_gradient_by_the_rule(
    shape: tuple[int, int], dtype: torch.dtype, impl: str, device: str, checker
) -> None:  # type: ignore[no-untyped-def]
    for normalize in (True, False):
        for reduction in ("mean", "sum", "none"):
            options = {"normalize": normalize, "reduction": reduction}
            rows = torch.rand(shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
            upstream = rows if reduction == "none" else torch.tensor(3.0)
            move = lambda p, z, o=options: byol_loss(p, z.to(p.device), impl=impl, **o)  # noqa: E731
            checker.against(move, reference(**options), pairs(*shape), dtype, device, upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [0.0, 0.9, 0.99, 0.9999])
def test_aligned_rows_keep_their_digits(alignment: float, dtype: torch.dtype, impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    p, z = (t.detach().to(dtype) for t in pairs(64, 128, alignment))
    exact = checker.run(reference(), [p.double().requires_grad_(), z.double()])
    found = checker.run(of(impl), [p.to(device).float().requires_grad_(), z.to(device).float()])
    for got, truth in zip(found, exact, strict=True):
        assert (got - truth).norm() <= 1e-5 * truth.norm()  # 2 - 2 cos would lose 1e-3 at 0.9999


# Differentiation


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize: bool, impl: str) -> None:
    if impl == "triton":
        pytest.skip("the Triton kernel has no float64")
    p, z = pairs(4, 3)
    function = lambda p: byol_loss(p, z, normalize=normalize, reduction="none", impl=impl)  # noqa: E731
    assert torch.autograd.gradcheck(function, (p,)) and torch.autograd.gradgradcheck(function, (p,))


def test_targets_get_no_gradient(impl: str, device: str) -> None:
    p, z = (t.detach().float().to(device).requires_grad_() for t in pairs(9, 4))
    byol_loss(p, z, impl=impl).backward()
    assert p.grad is not None and z.grad is None
    assert not byol_loss(p.detach(), z, impl=impl).requires_grad


def test_weights_have_a_gradient(impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    weight = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for reduction in ("mean", "sum", "none"):
        ours = lambda p, z, w, r=reduction: byol_loss(p, z, weight=w, reduction=r, impl=impl)  # noqa: E731
        theirs = lambda p, z, w, r=reduction: byol_reference(p, z, weight=w, reduction=r)  # noqa: E731
        checker.against(ours, theirs, (*pairs(20, 12), weight), torch.float32, device)


def test_upstream_gradient_of_stride_zero_and_twice(impl: str, device: str) -> None:
    p, z = (t.detach().float().to(device) for t in pairs(9, 4))
    rows = byol_loss(p.requires_grad_(), z, reduction="none", impl=impl)
    (first,) = torch.autograd.grad(rows, p, torch.ones(1, device=device).expand(9), retain_graph=True)
    assert torch.equal(first, torch.autograd.grad(rows, p, torch.ones_like(rows))[0])


def test_transform_of_torch_func() -> None:
    p, z = (t.detach() for t in pairs(5, 3))
    expected = torch.autograd.functional.jacobian(lambda a: byol_reference(a, z), p)
    torch.testing.assert_close(torch.func.grad(lambda a: byol_loss(a, z))(p), expected)


# Kinds of inputs


def test_not_contiguous(impl: str, device: str) -> None:
    base = torch.randn(7, 2, 10, device=device).requires_grad_()
    p, z = base[:, 0, ::2], base[:, 1, 1::2]
    dense = p.detach().clone().requires_grad_()
    value, expected = byol_loss(p, z, impl=impl), byol_loss(dense, z.detach().clone(), impl=impl)
    value.backward()
    expected.backward()
    assert torch.equal(value, expected) and base.grad is not None and torch.equal(base.grad[:, 0, ::2], dense.grad)


def test_no_rows_and_zero_rows(impl: str, device: str) -> None:
    p = torch.zeros(0, 4, device=device, requires_grad=True)
    value = byol_loss(p, p.detach(), impl=impl)
    value.backward()
    assert value == 0 and p.grad is not None and p.grad.shape == (0, 4)
    p, z = (t.detach().float().to(device) for t in pairs(6, 4))
    p[2], z[3] = 0, 0
    rows = byol_loss(p.requires_grad_(), z, reduction="none", impl=impl)
    rows.sum().backward()
    assert p.grad is not None and p.grad.isfinite().all() and rows[2].item() == pytest.approx(1)


def test_autocast_and_mixed_dtypes(impl: str, device: str) -> None:
    p, z = (t.detach().float().to(device) for t in pairs(16, 8))
    with torch.autocast(device, torch.bfloat16):
        value = byol_loss(p, z, impl=impl)
    assert value.dtype == torch.float32 and torch.equal(value, byol_loss(p, z, impl=impl))
    mixed = byol_loss(p.bfloat16(), z, impl=impl)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, byol_loss(p.bfloat16().float(), z, impl=impl))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_compiled_in_one_graph(backend: str, impl: str, device: str) -> None:
    torch._dynamo.reset()
    p, z = (t.detach().float().to(device) for t in pairs(12, 8))
    function = lambda p: byol_loss(p * 2, z, impl=impl).square() + simsiam_loss(p, z, impl=impl)  # noqa: E731
    value, expected = torch.compile(function, fullgraph=True, backend=backend)(p.requires_grad_()), function(p)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, p), torch.autograd.grad(expected, p))


def test_the_registered_op_keeps_torchs_rules(impl: str, device: str) -> None:
    p, z = (t.detach().float().to(device) for t in pairs(6, 4))
    torch.library.opcheck(torch.ops.ssl_fast.byol, (p.requires_grad_(), z, True, impl, True))


def test_the_same_bits_every_time(impl: str, device: str) -> None:
    p, z = (t.detach().float().to(device) for t in pairs(300, 130))
    runs = []
    for _ in range(3):
        value = byol_loss(p.requires_grad_(), z, impl=impl)
        runs.append((value.detach(), *torch.autograd.grad(value, p)))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


# Arguments


def test_modules_are_the_functions(impl: str, device: str) -> None:
    p, z = (t.detach().float().to(device) for t in pairs(6, 4))
    weight = torch.rand(6, device=device)
    module = BYOLLoss(normalize=False, reduction="sum", impl=impl)
    expected = byol_loss(p, z, normalize=False, reduction="sum", weight=weight, impl=impl)
    assert torch.equal(module(p, z, weight), expected) and "normalize=False, reduction='sum'" in repr(module)
    simsiam = SimSiamLoss(reduction="none", impl=impl)
    assert torch.equal(simsiam(p, z), simsiam_loss(p, z, reduction="none", impl=impl)) and "'none'" in repr(simsiam)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(3), torch.ones(3)), {}, r"p must be floating point of shape \[N, D\].*\[3\]"),
        ((torch.ones(3, 2), torch.ones(4, 2)), {}, r"z must have the shape.*of p.*got \[4, 2\]"),
        ((torch.ones(3, 2),) * 2, {"weight": torch.ones(3).int()}, "weight must be floating point.*int32"),
        ((torch.ones(3, 2),) * 2, {"reduction": "avg"}, "reduction must be .* got 'avg'"),
        ((torch.ones(3, 2),) * 2, {"impl": "fast"}, "impl of byol must be .* got 'fast'"),
        ((torch.ones(3, 2),) * 2, {"grad_reduce": "max"}, "grad_reduce must be 'mean'.*got 'max'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Tensor, ...], options: dict[str, Any], message: str) -> None:
    for function in (byol_loss, simsiam_loss):
        with pytest.raises(ValueError, match=message):
            function(*arguments, **options)
