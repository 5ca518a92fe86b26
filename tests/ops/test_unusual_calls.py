"""Ways in which torch may call an op beside the usual ones, and inputs at the edges of what the kernels take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fw
from torch import Tensor

import ssl_fast as sf
from ssl_fast.ops.contract import of_one_dtype

OP = "margin_softmax"  # of the tests that take an implementation
LABELS = torch.arange(6)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nt_xent": sf.nt_xent,
    "dcl": lambda a, b: sf.dcl(a, b, sigma=0.5),
    "clip_loss": lambda a, b: sf.clip_loss(a, b, 10.0),
    "arcface": lambda a, b: sf.arcface(a, b, LABELS),
    "vicreg": sf.vicreg,
    "byol_loss": sf.byol_loss,
    "swav_loss": lambda a, b: sf.swav_loss(torch.stack((a, b))),
    "dino_loss": lambda a, b: sf.dino_loss(torch.stack((a, b)), torch.stack((b, a)), center="sinkhorn"),
}


def rows(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return a.to(dtype), b.to(dtype)


@pytest.mark.parametrize("name", LOSSES)
def test_forward_mode_gives_the_derivative(name: str) -> None:
    (a, b), loss = rows(), LOSSES[name]
    leaf = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, b), leaf)
    tangent = rows()[1].roll(1, 0)
    with fw.dual_level():
        found = fw.unpack_dual(loss(fw.make_dual(a, tangent), b)).tangent
    torch.testing.assert_close(found, (gradient * tangent).sum())


@pytest.mark.parametrize("name", LOSSES)
def test_functional_gradients_and_second_ones_under_autocast(name: str) -> None:
    (a, b), loss = rows(torch.float32), LOSSES[name]
    leaf = a.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, b), leaf)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(loss(leaf, b), leaf, create_graph=True)
        functional = torch.func.grad(loss)(a, b)  # whose backward pass autocast reaches
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(functional, expected, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_another_default_device(name: str) -> None:
    (a, b), loss = rows(), LOSSES[name]
    expected = loss(a, b)
    with torch.device("meta"):
        found = loss(a, b)
    assert found.device == a.device and torch.equal(found, expected)


def test_another_default_device_of_what_returns_rows() -> None:
    a, b = rows(torch.float32)
    parameter = torch.nn.Parameter(a.clone())
    parameter.grad = b.clone()
    with torch.device("meta"):
        found = [*sf.knn_topk(a, b, 2), sf.koleo(a), sf.sinkhorn(a), sf.nt_xent(a, b, reduction="none")]
        found.append(sf.clip_grad_norm_([parameter], 1.0))
    assert all(tensor.device == a.device for tensor in found)


def test_vmap_of_sinkhorn() -> None:
    logits = torch.stack(rows())
    torch.testing.assert_close(torch.func.vmap(sf.sinkhorn)(logits), torch.stack([sf.sinkhorn(x) for x in logits]))


@pytest.mark.parametrize("loss", [sf.vicreg, sf.barlow_twins, lambda a, b: sf.info_nce(a, b, b)])
def test_the_wider_dtype_is_that_of_both(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = rows(torch.float32)
    assert torch.equal(loss(a.bfloat16(), b), loss(a.bfloat16().float(), b))
    assert loss(a.half(), b * 1e5).isfinite()
    assert [t.dtype for t in of_one_dtype(a.half(), b.bfloat16())] == [torch.float32] * 2


@pytest.mark.parametrize("num_classes", [1, 193])
@pytest.mark.parametrize("scale", [0.1, 0.5, 64.0])
def test_a_tile_of_the_own_class_alone(num_classes: int, scale: float, impl: str, device: str) -> None:
    """Of 193 classes the last is a tile of its own."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 16, generator=generator) for n in (3, num_classes))
    x, weight, labels = x.to(device), weight.to(device), torch.full((3,), num_classes - 1, device=device)
    leaf = x.clone().requires_grad_()
    value = sf.cosface(leaf, weight, labels, scale=scale, impl=impl)
    wide = sf.cosface(x.double().cpu(), weight.double().cpu(), labels.cpu(), scale=scale, impl="reference")
    torch.testing.assert_close(value.double().cpu(), wide, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(value, leaf)[0].isfinite().all()


def test_a_nan_centre_is_not_hidden(impl: str, device: str) -> None:
    weight = torch.randn(5, 3, 8, device=device)
    weight[:, 1] = torch.nan
    assert sf.arcface(torch.randn(4, 8, device=device), weight, torch.arange(4, device=device), impl=impl).isnan()


def test_tensors_without_memory_are_left_to_torch() -> None:
    class Wrapped(Tensor):
        @classmethod
        def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise NotImplementedError

    wrapped = torch.Tensor._make_wrapper_subclass(Wrapped, (6, 8))  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="tensors with memory of their own, got a Wrapped"):
        sf.nt_xent(wrapped, wrapped, impl="cpp")
