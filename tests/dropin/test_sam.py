"""davda54's SAM against its arithmetic written out: w + rho g / |g|, back, then the base optimiser's step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_fast.dropin.sam import SAM

BASES = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "eps": 1e-4}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.9)}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01}),
}


class Literal:
    """The two steps in plain torch."""

    def __init__(self, params: Any, base: Callable[..., Any], rho: float, adaptive: bool, **options: Any) -> None:
        self.base = base(params, **options)
        for group in self.base.param_groups:
            group.setdefault("rho", rho)
            group.setdefault("adaptive", adaptive)
        self.before: dict[Tensor, Tensor] = {}

    def rows(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(g, p) for g in self.base.param_groups for p in g["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self) -> None:
        squares = [((p.abs() if g["adaptive"] else 1) * p.grad).square().sum() for g, p in self.rows()]
        norm = sum(squares).sqrt() + 1e-12
        for group, p in self.rows():
            self.before[p] = p.clone()
            p += (p**2 if group["adaptive"] else 1) * p.grad * group["rho"] / norm

    @torch.no_grad()
    def second_step(self) -> None:
        for p, before in self.before.items():
            p.copy_(before)
        self.base.step()


def net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def loss_of(model: nn.Module, step: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)
    return (model(x) - 1).square().mean()


def agree(one: nn.Module, other: nn.Module, dtype: torch.dtype) -> None:
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
@pytest.mark.parametrize("base", BASES)
def test_first_and_second_step(base: str, rho: float, adaptive: bool, dtype: torch.dtype) -> None:
    kind, options = BASES[base]
    mine, other = net(dtype), net(dtype)
    ours = SAM(mine.parameters(), kind, rho=rho, adaptive=adaptive, **options)
    theirs = Literal(other.parameters(), kind, rho, adaptive, **options)
    for step in range(4):
        loss_of(mine, step, dtype).backward()
        ours.first_step(zero_grad=True)
        loss_of(other, step, dtype).backward()
        theirs.first_step()
        other.zero_grad()
        agree(mine, other, dtype)  # both are perturbed
        loss_of(mine, step, dtype).backward()
        ours.second_step(zero_grad=True)
        loss_of(other, step, dtype).backward()
        theirs.second_step()
        other.zero_grad()
        agree(mine, other, dtype)


def test_step_takes_gradients_that_are_there_and_one_closure() -> None:
    mine, other = net(torch.float64), net(torch.float64)
    ours = SAM(mine.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    theirs = SAM(other.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    for step in range(3):
        calls = []

        def closure(step: int = step, calls: list[int] = calls) -> Tensor:
            calls.append(step)
            loss = loss_of(mine, step, torch.float64)
            loss.backward()
            return loss

        loss_of(mine, step, torch.float64).backward()
        assert ours.step(closure).requires_grad and len(calls) == 1
        ours.zero_grad()
        for advance in (theirs.first_step, theirs.second_step):
            loss_of(other, step, torch.float64).backward()
            advance(zero_grad=True)
        agree(mine, other, torch.float64)


def test_gradients_stay_unless_zero_grad_is_asked_for() -> None:
    model = net(torch.float64)
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    for advance in (optimizer.first_step, optimizer.second_step):
        loss_of(model, 0, torch.float64).backward()
        advance()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        advance(zero_grad=True) if advance == optimizer.second_step else optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("error")
def test_groups_with_their_own_rho_and_schedules() -> None:
    mine, other = net(torch.float64), net(torch.float64)

    def groups(model: nn.Sequential) -> list[dict[str, Any]]:
        return [
            {"params": model[0].parameters(), "rho": 0.5, "adaptive": True},
            {"params": model[2].parameters(), "lr": 0.3},
        ]

    ours = SAM(groups(mine), torch.optim.SGD, rho=0.1, lr=0.1)
    theirs = Literal(groups(other), torch.optim.SGD, 0.1, False, lr=0.1)
    schedules = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (ours.base_optimizer, theirs.base)]
    assert ours.param_groups is ours.base_optimizer.param_groups
    for step in range(3):
        for model, optimizer in ((mine, ours), (other, theirs)):
            for advance in (optimizer.first_step, optimizer.second_step):
                loss_of(model, step, torch.float64).backward()
                advance()
                model.zero_grad()
        for schedule in schedules:
            schedule.step()
        agree(mine, other, torch.float64)


def test_a_parameter_without_a_gradient_stays_and_one_that_loses_it_comes_back() -> None:
    model = net(torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    model[0].bias.requires_grad_(False)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=1.0, lr=0.1)
    loss_of(model, 0, torch.float64).backward()
    optimizer.first_step(zero_grad=True)
    assert torch.equal(model[0].bias, before[1]) and not torch.equal(model[2].bias, before[3])
    optimizer.second_step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_state_dicts_of_both_load() -> None:
    model = net(torch.float64)
    optimizer = SAM(model.parameters(), torch.optim.AdamW, lr=0.01)
    theirs = {
        "state": {i: {"old_p": p.detach().clone()} for i, p in enumerate(model.parameters())},
        "param_groups": [{**optimizer.param_groups[0], "params": [0, 1, 2, 3], "lr": 0.5}],
    }
    optimizer.load_state_dict(theirs)
    assert optimizer.param_groups[0]["lr"] == 0.5
    for advance in (optimizer.first_step, optimizer.second_step):
        loss_of(model, 0, torch.float64).backward()
        advance(zero_grad=True)
    again = SAM(model.parameters(), torch.optim.AdamW, lr=0.01)
    again.load_state_dict(optimizer.state_dict())
    assert set(again.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_wrong_calls() -> None:
    model = net(torch.float64)
    with pytest.raises(ValueError, match="rho"):
        SAM(model.parameters(), torch.optim.SGD, rho=-0.1, lr=0.1)
    with pytest.raises(ValueError, match="requires closure"):
        SAM(model.parameters(), torch.optim.SGD, lr=0.1).step()
