"""NT-Xent of more than two views: SupCon's Eq. 2 with every sample a class of its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_fast import nt_xent, supcon
from ssl_fast.ops.nt_xent import nt_xent_reference

OP = "nt_xent"


def views(num_views: int, num_rows: int, dim: int) -> tuple[Tensor, ...]:
    """Views [N, D] of common samples."""
    generator = torch.Generator().manual_seed(num_views)
    sample = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_views, num_rows, dim, generator=generator, dtype=torch.float64)
    return tuple((sample + n).requires_grad_() for n in noise)


def reference(**options: Any) -> Callable[..., Tensor]:
    return lambda *z: nt_xent_reference(z[0], z[1], views=z[2:], **options)


@pytest.mark.parametrize("num_views", [3, 4, 7])
def test_by_the_rule(num_views: int, impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    for dtype in (torch.float32, torch.bfloat16):
        for reduction in ("mean", "none"):
            options = {"temperature": 0.2, "reduction": reduction}
            upstream = torch.rand(num_views, 21, generator=torch.Generator().manual_seed(2)) + 0.5
            upstream = upstream if reduction == "none" else torch.tensor(3.0)
            ours = lambda *z, options=options: nt_xent(*z, impl=impl, **options)  # noqa: E731
            checker.against(ours, reference(**options), views(num_views, 21, 9), dtype, device, upstream)


def test_every_sample_is_a_class(impl: str, device: str) -> None:
    z = torch.stack(views(3, 15, 6)).detach().float().to(device)
    weight = torch.rand(15, device=device)
    losses = supcon(z.transpose(0, 1), torch.arange(15, device=device), weight=weight, reduction="none", impl=impl)
    torch.testing.assert_close(nt_xent(*z, weight=weight, reduction="none", impl=impl), losses.T)
    value = nt_xent(*z, weight=weight, impl=impl)
    torch.testing.assert_close(value, losses.sum() / (3 * weight.sum()))


def test_gradcheck(impl: str) -> None:
    if impl == "triton":
        pytest.skip("the Triton kernels have no float64")
    weight = torch.rand(3, dtype=torch.float64).requires_grad_()
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def function(w: Tensor, t: Tensor, *z: Tensor) -> Tensor:
        return nt_xent(*z, weight=w, temperature=t, impl=impl)

    inputs = (weight, temperature, *views(3, 3, 2))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_compiled_in_one_graph(impl: str, device: str) -> None:
    torch._dynamo.reset()
    z = tuple(v.detach().to(device, torch.float32).requires_grad_() for v in views(3, 6, 4))

    def function(*z: Tensor) -> Tensor:
        return nt_xent(*z, impl=impl).square()

    value, expected = torch.compile(function, fullgraph=True, backend="aot_eager")(*z), function(*z)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(expected, z))


@pytest.mark.parametrize("num_rows", [0, 1])
def test_few_samples(num_rows: int, impl: str, device: str) -> None:
    z = [torch.ones(num_rows, 4, device=device).requires_grad_() for _ in range(3)]
    value = nt_xent(*z, impl=impl)
    value.backward()
    # one sample: two equal positives, each of probability 1 / 2
    assert value.item() == pytest.approx(num_rows * 0.6931472, abs=1e-6)
    assert all(v.grad is not None and v.grad.shape == v.shape for v in z)
