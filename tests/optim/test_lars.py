"""LARS as an optimiser: the paper's steps, the conventions of self-supervised learning, state and groups."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from ssl_fast.optim import LARS


def literal_step(p: Tensor, g: Tensor, v: Tensor, lr: float, adapt: bool) -> None:
    """You et al. 2017, Algorithm 1, line by line, the rate inside v as printed there."""
    momentum, beta, eta = 0.9, 0.01, 0.02
    if adapt:
        local = eta * p.norm() / (g.norm() + beta * p.norm())
        v.copy_(momentum * v + lr * local * (g + beta * p))
    else:  # Chen et al. 2020: biases and norms neither adapt nor decay
        v.copy_(momentum * v + lr * g)
    p.sub_(v)


def small_model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    return nn.Sequential(*layers).to(dtype)


def loss_of(model: nn.Module) -> Tensor:
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(next(model.parameters()).dtype)
    return model(x).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_steps_are_those_of_the_paper(impl: str) -> None:
    model = small_model()
    literal = [(p.detach().clone(), torch.zeros_like(p)) for p in model.parameters()]
    optimizer = LARS(model.parameters(), lr=0.5, weight_decay=0.01, trust_coefficient=0.02, eps=0.0, impl=impl)
    for _ in range(10):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        for (p, v), trained in zip(literal, model.parameters(), strict=True):
            literal_step(p, trained.grad, v, lr=0.5, adapt=p.ndim > 1)
            torch.testing.assert_close(trained.detach(), p, rtol=1e-12, atol=1e-13)


def test_without_adaptation_it_is_torch_sgd() -> None:
    model, twin = small_model(), small_model()
    train(model, LARS(model.parameters(), lr=0.1, nesterov=True, adapt=False), 5)
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True), 5)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_a_layer_moves_in_proportion_to_its_size() -> None:
    """|step| = lr eta |p| whatever the gradient's scale: the point of LARS."""
    for scale in (1e-3, 1.0, 1e3):
        p = nn.Parameter(torch.full((4, 4), 3.0, dtype=torch.float64))
        p.grad = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale
        before = p.detach().clone()
        LARS([p], lr=2.0, weight_decay=0.0, trust_coefficient=0.01, eps=0.0).step()
        torch.testing.assert_close((p - before).norm().item(), 2.0 * 0.01 * before.norm().item(), rtol=1e-12, atol=0)


def test_biases_and_norms_neither_adapt_nor_decay() -> None:
    bias, forced = nn.Parameter(torch.full((3,), 2.0)), nn.Parameter(torch.full((3,), 2.0))
    bias.grad, forced.grad = torch.ones(3), torch.ones(3)
    groups = [{"params": [bias]}, {"params": [forced], "adapt": True}]
    LARS(groups, lr=0.5, weight_decay=0.1, trust_coefficient=0.25, eps=0.0).step()
    torch.testing.assert_close(bias.detach(), torch.full((3,), 1.5))
    ratio = 0.25 * 2 / (1 + 0.1 * 2)  # both norms carry the same factor sqrt(3)
    torch.testing.assert_close(forced.detach(), torch.full((3,), 2 - 0.5 * ratio * 1.2))


def test_parameters_without_a_gradient_stay_and_get_no_state() -> None:
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    optimizer = LARS([p, q], lr=0.1)
    optimizer.step()
    assert q.equal(torch.ones(2, 2))
    assert list(optimizer.state) == [p]


def test_step_returns_the_closures_loss() -> None:
    model = small_model()
    optimizer = LARS(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert first.requires_grad
    assert loss_of(model) < first


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_resumed_training_is_bit_identical(dtype: torch.dtype) -> None:
    model = small_model(dtype)
    optimizer = LARS(model.parameters(), lr=0.2)
    train(model, optimizer, 3)
    resumed = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = LARS(resumed.parameters(), lr=123.0)
    again.load_state_dict(torch.load(file, weights_only=True))
    buffers = [again.state[p]["momentum_buffer"] for p in resumed.parameters()]
    assert {b.dtype for b in buffers} == {torch.promote_types(dtype, torch.float32)}
    train(model, optimizer, 3)
    train(resumed, again, 3)
    assert all(p.equal(q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


def test_loaded_momentum_is_a_copy() -> None:
    model = small_model()
    optimizer = LARS(model.parameters(), lr=0.2)
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    kept = {i: s["momentum_buffer"].clone() for i, s in saved["state"].items()}
    twin = copy.deepcopy(model)
    other = LARS(twin.parameters(), lr=0.2)
    other.load_state_dict(saved)
    train(twin, other, 1)
    assert all(saved["state"][i]["momentum_buffer"].equal(kept[i]) for i in kept)


def test_groups_have_their_own_numbers_and_can_be_added() -> None:
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    p.grad, q.grad = torch.ones(2, 2), torch.ones(2, 2)
    optimizer = LARS([p], lr=1.0, weight_decay=0.0, trust_coefficient=0.1, eps=0.0)
    optimizer.add_param_group({"params": [q], "lr": 0.5})
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2, 2), 0.9))
    torch.testing.assert_close(q.detach(), torch.full((2, 2), 0.95))


def test_channels_last_training_equals_contiguous_training() -> None:
    model = small_model()
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    train(model, LARS(model.parameters(), lr=0.2), 4)
    train(twin, LARS(twin.parameters(), lr=0.2), 4)
    assert twin[0].weight.is_contiguous(memory_format=torch.channels_last)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_a_schedule_drives_it() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([p], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    p.grad = torch.ones(2, 2)
    optimizer.step()
    schedule.step()
    assert p.equal(torch.ones(2, 2))


def test_a_sparse_gradient_is_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="LARS needs dense gradients, got a sparse one"):
        LARS(embedding.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"lr": 0.1, "momentum": -0.5}, "momentum must be at least 0"),
        ({"lr": 0.1, "weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
        ({"lr": 0.1, "momentum": 0.0, "nesterov": True}, "nesterov needs momentum > 0"),
        ({"lr": 0.1, "adapt": "no"}, "adapt must be True, False or None, got 'no'"),
    ],
)
def test_impossible_numbers_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LARS([nn.Parameter(torch.ones(1))], **arguments)
