"""Lookahead: the paper's steps and timm's, around any optimiser."""

import copy

import pytest
import torch
from torch import nn

from ssl_fast.optim import LARS, Lookahead

X = torch.randn(10, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(5, 3, dtype=torch.float64)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("base", [torch.optim.AdamW, torch.optim.SGD, LARS])
def test_it_is_the_papers_algorithm(base: type[torch.optim.Optimizer]) -> None:
    model, twin = network(), network()
    train(model, Lookahead(base(model.parameters(), lr=0.05), k=3, alpha=0.4), 8)
    inner, slow = base(twin.parameters(), lr=0.05), [p.detach().clone() for p in twin.parameters()]
    for step in range(1, 9):
        train(twin, inner, 1)
        if step % 3 == 0:
            slow = [s + 0.4 * (p.detach() - s) for s, p in zip(slow, twin.parameters(), strict=True)]
            with torch.no_grad():
                for p, s in zip(twin.parameters(), slow, strict=True):
                    p.copy_(s)
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-12, atol=1e-13)


def test_it_is_timms_when_that_starts_where_training_starts() -> None:
    timm = pytest.importorskip("timm.optim.lookahead")
    model, twin = network(), network()
    train(model, Lookahead(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), k=4), 10)
    base = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for p in twin.parameters():  # timm takes its slow weights at the first step back, which then does nothing
        base.state[p]["lookahead_slow_buff"] = p.detach().clone()
    train(twin, timm.Lookahead(base, alpha=0.5, k=4), 10)
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-12, atol=1e-13)


def test_hand_worked_numbers_and_sync() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = Lookahead(torch.optim.SGD([p], lr=1.0), k=2, alpha=0.25)
    values = []
    for _ in range(3):
        p.grad = -torch.ones(1)
        optimizer.step()
        values.append(p.item())
    assert values == [1.0, 0.5, 1.5]
    optimizer.sync_()
    assert p.item() == 0.5 + 0.25 * 1.0
    assert (optimizer.steps, optimizer.slow[0].item()) == (0, 0.75)


def test_a_skipped_step_is_not_counted_and_a_late_group_gets_slow_weights() -> None:
    p, q = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.full((1,), 8.0))
    optimizer = Lookahead(torch.optim.SGD([p], lr=1.0), k=2)
    optimizer.step(lambda: 0.0)
    assert optimizer.steps == 0
    optimizer.add_param_group({"params": [q]})
    for _ in range(2):
        p.grad, q.grad = -torch.ones(1), torch.ones(1)
        optimizer.step()
    assert (p.item(), q.item()) == (1.0, 7.0)


def test_resumed_training_is_bit_identical_and_a_loaded_state_is_a_copy() -> None:
    model = network()
    optimizer = Lookahead(torch.optim.AdamW(model.parameters(), lr=0.1), k=3)
    train(model, optimizer, 4)
    twin, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    again = Lookahead(torch.optim.AdamW(twin.parameters(), lr=9.0), k=3)
    again.load_state_dict(state)
    kept = [s.clone() for s in state["lookahead"]["slow"]]
    train(model, optimizer, 4)
    train(twin, again, 4)
    assert all(p.equal(q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(s.equal(k) for s, k in zip(state["lookahead"]["slow"], kept, strict=True))


def test_bad_arguments_are_named() -> None:
    base = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        Lookahead(base, k=0)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 1.5"):
        Lookahead(base, alpha=1.5)
    with pytest.raises(ValueError, match="state_dict must hold the key 'lookahead'"):
        Lookahead(base).load_state_dict(base.state_dict())
