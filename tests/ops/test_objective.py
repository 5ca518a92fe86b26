"""Losses that come with their gradients: what the backward pass hands out, and the settings of their modules."""

import pytest
import torch
from torch import Tensor

from ssl_fast import NTXentLoss, clip_loss, nt_xent, siglip_loss, vicreg

LOSSES = {
    "nt_xent": nt_xent,
    "clip_loss": lambda a, b: clip_loss(a, b, 5.0),
    "siglip_loss": lambda a, b: siglip_loss(a, b, 5.0, -2.0),
    "vicreg": vicreg,
}


def leaves() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 4, generator=generator).requires_grad_() for _ in range(2))
    return a, b


@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_written_to_changes_nothing_for_a_graph_that_is_kept(name: str) -> None:
    a, b = leaves()
    value = LOSSES[name](a, b)
    (first,) = torch.autograd.grad(value, a, retain_graph=True)
    expected = first.clone()
    first.zero_()
    value.backward(retain_graph=True)
    assert a.grad is not None and torch.equal(a.grad, expected)
    a.grad.zero_()
    assert torch.equal(torch.autograd.grad(value, a)[0], expected)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_add_up_over_backward_passes(name: str) -> None:
    a, b = leaves()
    (once,) = torch.autograd.grad(LOSSES[name](a, b), a)
    for _ in range(2):
        LOSSES[name](a, b).backward()
    assert a.grad is not None and torch.equal(a.grad, once + once)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_multiplied_by_what_comes_from_above(name: str) -> None:
    a, b = leaves()
    (once,) = torch.autograd.grad(LOSSES[name](a, b), a)
    assert torch.equal(torch.autograd.grad(LOSSES[name](a, b) * 4, a)[0], once * 4)
    batched = torch.autograd.grad(LOSSES[name](a, b), a, torch.tensor([1.0, 2.0]), is_grads_batched=True)[0]
    assert torch.equal(batched, torch.stack((once, once * 2)))


@pytest.mark.parametrize("name", LOSSES)
def test_one_tensor_in_both_places_gets_the_sum(name: str) -> None:
    a, _ = leaves()
    other = a.detach().clone().requires_grad_()
    parts = torch.autograd.grad(LOSSES[name](a, other), (a, other))
    torch.testing.assert_close(torch.autograd.grad(LOSSES[name](a, a), a)[0], parts[0] + parts[1])


def test_a_module_reads_its_settings_at_each_call() -> None:
    a, b = leaves()
    module = NTXentLoss(temperature=0.5, grad_reduce="sum")
    assert repr(module) == "NTXentLoss(temperature=0.5, normalize=True, reduction='mean', impl='auto')"
    module.temperature = 0.2
    assert torch.equal(module(a, b), nt_xent(a, b, temperature=0.2))
