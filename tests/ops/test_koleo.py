"""KoLeo: every implementation against the equation."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import KoLeoLoss, koleo
from ssl_fast.ops.koleo import koleo_reference

OP = "koleo"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows(num_rows: int, dim: int) -> Tensor:
    """Rows of many lengths, float64."""
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    return (x * torch.rand(num_rows, 1, generator=generator, dtype=torch.float64)).requires_grad_()


def literal(x: Tensor, eps: float = 1e-8) -> Tensor:
    """The definition, pair by pair."""
    z = F.normalize(x, dim=1)
    distances = [min((z[i] - z[j]).norm() for j in range(len(z)) if j != i) for i in range(len(z))]
    return -torch.stack([(d + eps).log() for d in distances]).mean()


def test_the_definition_pair_by_pair(impl: str, device: str) -> None:
    x = rows(9, 4)
    value = koleo(x.detach().to(device), impl=impl)
    torch.testing.assert_close(value.cpu(), literal(x.detach()))
    torch.testing.assert_close(koleo_reference(x), literal(x))


def test_lightlys_loss(impl: str, device: str) -> None:
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    x = rows(50, 16).detach().float().to(device).requires_grad_()
    ours, theirs = koleo(x, impl=impl), lightly.KoLeoLoss()(x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x), rtol=1e-4, atol=1e-6)


def test_numbers_worked_by_hand(impl: str, device: str) -> None:
    x = torch.tensor([[2.0, 0], [0, 5], [-1, 0]], device=device)
    assert koleo(x, impl=impl).item() == pytest.approx(-math.log(math.sqrt(2)), rel=1e-6)
    twins = torch.ones(2, 3, device=device).requires_grad_()
    value = koleo(twins, eps=0.5, impl=impl)
    assert value.item() == pytest.approx(math.log(2), rel=1e-6)
    assert not torch.autograd.grad(value, twins)[0].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 32), (2, 1000), (385, 17), (200, 3)], ids=str)
def test_value_and_gradients_by_the_rule(  # type: ignore[no-untyped-def]
    shape: tuple[int, int], dtype: torch.dtype, impl: str, device: str, checker
) -> None:
    for reduction in ("mean", "sum", "none"):
        upstream = torch.rand(shape[0], generator=torch.Generator().manual_seed(1)) if reduction == "none" else None

        def exact(x: Tensor, reduction: str = reduction) -> Tensor:
            return koleo_reference(x, reduction=reduction)

        def ours(x: Tensor, reduction: str = reduction) -> Tensor:
            return koleo(x, reduction=reduction, impl=impl)

        checker.against(ours, exact, (rows(*shape),), dtype, device, upstream)


def test_absolute_errors_of_close_neighbours(impl: str, device: str) -> None:
    """Distances of 1e-3 from float32 rows: taken from their differences, not from 2 - 2 cos."""
    x = rows(20, 8).detach().repeat_interleave(2, 0)
    x[1::2] += (
        1e-3 * torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).double() * x[1::2].norm(dim=1)[:, None]
    )
    x = x.float().requires_grad_()
    exact = x.detach().double().requires_grad_()
    wanted = torch.autograd.grad(koleo_reference(exact), exact)[0]
    ours = x.detach().to(device).requires_grad_()
    value = koleo(ours, impl=impl)
    assert abs(value.item() - koleo_reference(exact).item()) < 1e-4
    (found,) = torch.autograd.grad(value, ours)
    assert (found.cpu() - wanted).norm() < 1e-3 * wanted.norm()


def test_gradcheck(impl: str) -> None:
    x = rows(7, 3)
    assert torch.autograd.gradcheck(lambda x: koleo(x, reduction="none", impl=impl), (x,))
    assert torch.autograd.gradgradcheck(lambda x: koleo(x, impl=impl), (x,))


def test_transform_of_torch_func() -> None:
    x = rows(6, 3).detach()
    expected = torch.autograd.functional.jacobian(koleo_reference, x)
    torch.testing.assert_close(torch.func.grad(koleo)(x), expected)


def test_zero_rows_few_rows_and_strides(impl: str, device: str) -> None:
    x = rows(9, 4).detach().float().to(device).requires_grad_()
    assert torch.equal(koleo(x.T.contiguous().T, impl=impl), koleo(x, impl=impl))
    with_zero = torch.cat((x, torch.zeros(2, 4, device=device)))
    value = koleo(with_zero, impl=impl)
    assert value.isfinite() and torch.autograd.grad(value, x)[0].isfinite().all()
    for few in (x[:0], x[:1]):
        value = koleo(few, impl=impl)
        assert value.item() == 0 and not torch.autograd.grad(value, x)[0].any()
    per_row = koleo(x, reduction="none", impl=impl)
    first = torch.autograd.grad(per_row, x, torch.ones(1, device=device).expand(9), retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(per_row, x, torch.ones_like(per_row))[0])


def test_autocast_changes_nothing_and_bits_repeat(impl: str, device: str) -> None:
    x = rows(300, 24).detach().float().to(device).requires_grad_()
    value = koleo(x, impl=impl)
    (grad,) = torch.autograd.grad(value, x)
    with torch.autocast(device, torch.bfloat16):
        again = koleo(x, impl=impl)
    assert again.dtype == torch.float32 and torch.equal(again, value)
    assert torch.equal(torch.autograd.grad(again, x)[0], grad)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_compiled_in_one_graph(backend: str, impl: str, device: str) -> None:
    torch._dynamo.reset()
    x = rows(12, 5).detach().float().to(device).requires_grad_()
    function = lambda x: koleo(x * 2, impl=impl).square()  # noqa: E731
    value, expected = torch.compile(function, fullgraph=True, backend=backend)(x), function(x)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_the_registered_op_keeps_torchs_rules(impl: str, device: str) -> None:
    x = rows(6, 4).detach().float().to(device).requires_grad_()
    torch.library.opcheck(torch.ops.ssl_fast.koleo, (x, 1e-8, "", impl))


def test_module_is_the_function(impl: str, device: str) -> None:
    x = rows(6, 4).detach().float().to(device)
    module = KoLeoLoss(eps=0.1, reduction="sum", impl=impl)
    assert torch.equal(module(x), koleo(x, eps=0.1, reduction="sum", impl=impl)) and "eps=0.1" in repr(module)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.ones(3), {}, r"x must be floating point of shape \[N, D\].*\[3\]"),
        (torch.ones(3, 2), {"eps": -1}, "eps must not be negative, got -1"),
        (torch.ones(3, 2), {"reduction": "avg"}, "reduction must be .* got 'avg'"),
        (torch.ones(3, 2), {"impl": "triton"}, "impl of koleo must be .* got 'triton'"),
        (torch.ones(3, 2), {"grad_reduce": "max"}, "grad_reduce must be 'mean'.*got 'max'"),
    ],
)
def test_wrong_arguments_are_named(x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        koleo(x, **options)
