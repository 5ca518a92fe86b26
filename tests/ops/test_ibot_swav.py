"""iBOT and SwAV, the other two losses on the engine of dino_loss: every implementation against the equations."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import IBOTLoss, SwAVLoss, ibot_loss, sinkhorn, swav_loss
from ssl_fast.ops.ibot import ibot_reference
from ssl_fast.ops.swav import swav_reference

OP = "prototypes"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def tokens(num_prototypes: int = 90, dim: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """z, y [M, D], w, w' [K, D] and masks [B, P], one image without a masked token; float64."""
    masks = torch.rand(5, 12, generator=torch.Generator().manual_seed(0)) < 0.4
    masks[2] = False
    count = int(masks.sum())
    z, w = draw(count, dim).requires_grad_(), draw(num_prototypes, dim).requires_grad_()
    return z, draw(count, dim, seed=1), w, draw(num_prototypes, dim, seed=1), masks


def on(device: str, *tensors: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [t.detach().to(device, dtype).requires_grad_(t.requires_grad) for t in tensors]


# iBOT


def test_ibot_image_by_image() -> None:
    z, y, _, _, masks = tokens(dim=90)
    loss = -((y / 0.04).softmax(1) * (z / 0.1).log_softmax(1)).sum(1)
    per_image, begin = [], 0
    for mask in masks:
        count = int(mask.sum())
        per_image.append(loss[begin : begin + count].mean() if count else torch.zeros((), dtype=torch.float64))
        begin += count
    expected = torch.stack(per_image).mean()
    torch.testing.assert_close(ibot_reference(z, y, masks), expected)
    torch.testing.assert_close(ibot_loss(z, y, masks), expected)
    torch.testing.assert_close(ibot_loss(z, y, masks.view(5, 3, 4), reduction="sum"), expected * 5)
    torch.testing.assert_close(ibot_loss(z, y, masks, reduction="none").sum() / 5, expected)


def test_lightlys_patch_loss(impl: str, device: str) -> None:
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    z, y, w, wt = on(device, *tokens()[:4])
    masks = tokens()[4].to(device)
    theirs = lightly.IBOTPatchLoss(90).to(device)
    expected = theirs(y @ wt.T, z @ w.T, masks.view(5, 3, 4))
    torch.testing.assert_close(ibot_loss(z, y, masks, w, wt, impl=impl), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ibot_by_the_rule(dtype: torch.dtype, impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    *inputs, masks = tokens()
    center = torch.randn(90, generator=torch.Generator().manual_seed(1)).double() / 10

    def ours(*a: Tensor) -> Tensor:
        return ibot_loss(*a[:2], masks.to(device), *a[2:], center=center.to(device), impl=impl)

    def plain(*a: Tensor) -> Tensor:
        return ibot_reference(*a[:2], masks, *a[2:], center=center.to(a[0].dtype))

    checker.against(ours, plain, inputs, dtype, device)


def test_ibot_balances_the_masked_tokens(impl: str, device: str) -> None:
    z, y, w, wt, masks = (t.detach() for t in tokens())
    q = sinkhorn(y @ wt.T, temperature=0.04)
    rows = -(q * (z @ w.T / 0.1).log_softmax(1)).sum(1)
    expected = (rows * (1 / masks.sum(1, keepdim=True)).expand_as(masks)[masks]).sum() / 5
    value = ibot_loss(*on(device, z, y), masks.to(device), *on(device, w, wt), center="sinkhorn", impl=impl)
    torch.testing.assert_close(value.cpu().double(), expected, rtol=3e-6, atol=0)


def test_ibot_gradcheck_and_nobody_masked(impl: str, device: str) -> None:
    z, y, w, wt, masks = tokens(6, 4)
    if impl != "triton":
        assert torch.autograd.gradcheck(lambda z, w: ibot_loss(z, y, masks, w, wt, impl=impl), (z, w))
    z, y, w, wt = on(device, z[:0], y[:0], w, wt)
    value = ibot_loss(z, y, torch.zeros(3, 4, dtype=torch.bool, device=device), w, wt, center="sinkhorn", impl=impl)
    assert value.item() == 0 and not torch.autograd.grad(value, w)[0].any()


@pytest.mark.parametrize("op", ["ibot", "swav"])
def test_compiled_in_one_graph(op: str, impl: str, device: str) -> None:
    torch._dynamo.reset()
    z, y, w, wt = on(device, *tokens()[:4])
    masks, views = tokens()[4].to(device), draw(3, 10, 16).float().to(device)

    def function(z: Tensor, w: Tensor) -> Tensor:
        if op == "ibot":
            return ibot_loss(z * 2, y, masks, w, wt, center="sinkhorn", impl=impl).square()
        return swav_loss(views * z[0], w, impl=impl).square()

    value, expected = torch.compile(function, fullgraph=True, backend="aot_eager")(z, w), function(z, w)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, (z, w)), torch.autograd.grad(expected, (z, w)))


# SwAV


def test_swav_pair_by_pair() -> None:
    logits = draw(4, 12, 30)
    expected = torch.zeros((), dtype=torch.float64)
    for a in range(2):
        q = sinkhorn(logits[a])
        for v in set(range(4)) - {a}:
            expected -= (q * F.log_softmax(logits[v] / 0.1, 1)).sum(1).mean() / 6
    torch.testing.assert_close(swav_reference(logits), expected)
    torch.testing.assert_close(swav_loss(logits), expected)


def test_lightlys_swav(impl: str, device: str) -> None:
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    views, w = draw(5, 12, 16).float().to(device), draw(30, 16).float().to(device)
    logits = views @ w.T
    expected = lightly.SwaVLoss()(list(logits[:2]), list(logits[2:])).squeeze()
    torch.testing.assert_close(swav_loss(views, w, impl=impl), expected)
    torch.testing.assert_close(swav_loss(logits), expected)


def test_lightlys_swav_with_a_queue(impl: str, device: str) -> None:
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    views, w, queue = (draw(*shape).float().to(device) for shape in ((5, 12, 16), (30, 16), (2, 50, 16)))
    logits, earlier = views @ w.T, queue @ w.T
    expected = lightly.SwaVLoss()(list(logits[:2]), list(logits[2:]), list(earlier)).squeeze()
    torch.testing.assert_close(swav_loss(views, w, queue=queue, impl=impl), expected)
    torch.testing.assert_close(swav_loss(logits, queue=earlier), expected)
    torch.testing.assert_close(swav_reference(views, w, queue=queue), expected)
    assert (swav_loss(logits) - expected).abs() > 1e-4
    torch.testing.assert_close(SwAVLoss(impl=impl)(views, w, queue=queue), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_assign", [1, 2, 3])
def test_swav_by_the_rule(num_assign: int, dtype: torch.dtype, impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    inputs = draw(4, 33, 16).requires_grad_(), draw(70, 16).requires_grad_()

    def ours(x: Tensor, w: Tensor) -> Tensor:
        return swav_loss(x, w, num_assign=num_assign, impl=impl)

    checker.against(ours, lambda x, w: swav_reference(x, w, num_assign=num_assign), inputs, dtype, device)


def test_swav_gradcheck_and_frozen_prototypes(impl: str) -> None:
    views, w = draw(3, 5, 4).requires_grad_(), draw(6, 4)
    views, target = views.detach().requires_grad_(), draw(6, 4)
    if impl != "triton":
        # The assignments are constants of the loss, so that finite differences are taken of the prediction alone.
        (found,) = torch.autograd.grad(swav_loss(views, target, num_assign=1, impl=impl), views)
        q = sinkhorn(views.detach()[0] @ target.T)
        exact = -(q * (views @ target.T / 0.1).log_softmax(2)[1:]).sum(2).mean()
        torch.testing.assert_close(found, torch.autograd.grad(exact, views)[0])
    assert not swav_loss(views.detach().float(), w.float()).requires_grad


def test_even_logits_give_log_k() -> None:
    assert swav_loss(torch.zeros(3, 4, 50)).item() == pytest.approx(math.log(50))


# Modules and arguments


def test_modules_are_the_functions(impl: str, device: str) -> None:
    z, y, w, wt = on(device, *tokens()[:4])
    masks = tokens()[4].to(device)
    module = IBOTLoss(teacher_temperature=0.07, impl=impl)
    expected = ibot_loss(z, y, masks, w, wt, teacher_temperature=0.07, center="sinkhorn", impl=impl)
    assert torch.equal(module(z, y, masks, w, wt, center="sinkhorn"), expected)
    views = draw(3, 10, 16).float().to(device)
    swav = SwAVLoss(epsilon=0.1, reduction="none", impl=impl)
    assert torch.equal(swav(views, w), swav_loss(views, w, epsilon=0.1, reduction="none", impl=impl))
    assert "teacher_temperature=0.07" in repr(module) and "epsilon=0.1" in repr(swav)


@pytest.mark.parametrize(
    ("masks", "options", "message"),
    [
        (torch.ones(2, 2), {}, "masks must be bool of shape.*float32"),
        (torch.ones(2, 2, dtype=torch.bool), {}, "masks must have as many true entries as there are tokens, 3, got 4"),
        (torch.ones(1, 3, dtype=torch.bool), {"center": torch.ones(2)}, r"center must be .* \[4\].*got .*\[2\]"),
        (torch.ones(1, 3, dtype=torch.bool), {"reduction": "avg"}, "reduction must be .* got 'avg'"),
    ],
)
def test_wrong_arguments_of_ibot(masks: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ibot_loss(torch.ones(3, 4), torch.ones(3, 4), masks, **options)


def test_wrong_arguments_of_both() -> None:
    with pytest.raises(ValueError, match=r"student must have shape \[M, D\], got \[3\]"):
        ibot_loss(torch.ones(3), torch.ones(3), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="num_assign must be between 1 and the number of views, 2, got 3"):
        swav_loss(torch.ones(2, 3, 4), num_assign=3)
    with pytest.raises(ValueError, match="teacher_temperature must be positive"):
        swav_loss(torch.ones(2, 3, 4), epsilon=0)
    with pytest.raises(ValueError, match=r"queue must be .* shape \[2, Q, 4\].*got torch.float32 of shape \[1, 9, 4\]"):
        swav_loss(torch.ones(2, 3, 4), queue=torch.ones(1, 9, 4))
