"""LAMB: timm's steps, conventions of parameters, saved state."""

import copy
import io
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from ssl_fast.optim import LAMB

X = torch.randn(10, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X.to(next(model.parameters()).dtype)).square().mean().backward()
        optimizer.step()


def split(model: nn.Module, **weights: Any) -> list[dict[str, Any]]:
    """Weights, then biases without decay."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.ndim > 1], **weights},
        {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
def test_it_is_timms_on_the_same_split_of_parameters(clip: bool, corrected: bool) -> None:
    timm = pytest.importorskip("timm.optim.lamb")
    model, twin = network(), network()
    options = {"lr": 0.02, "weight_decay": 0.05, "bias_correction": corrected}
    train(model, LAMB(model.parameters(), clip=clip, **options), 5)
    train(twin, timm.Lamb(split(twin), max_grad_norm=None, trust_clip=clip, **options), 5)
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-9, atol=1e-10)


def test_adapt_overrides_the_convention() -> None:
    timm = pytest.importorskip("timm.optim.lamb")
    model, twin = network(), network()
    train(model, LAMB(model.parameters(), lr=0.02, adapt=True), 3)
    train(twin, timm.Lamb(twin.parameters(), lr=0.02, max_grad_norm=None), 3)
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-9, atol=1e-10)
    model, twin = network(), network()
    train(model, LAMB(model.parameters(), lr=0.02, eps=1e-8, adapt=False), 3)
    train(twin, torch.optim.AdamW(twin.parameters(), lr=0.02, weight_decay=0.0), 3)
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_resumed_training_is_bit_identical(dtype: torch.dtype) -> None:
    model = network(dtype)
    optimizer = LAMB(split(model, weight_decay=0.1), lr=0.02)
    train(model, optimizer, 3)
    twin, file = copy.deepcopy(model), io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = LAMB(split(twin), lr=9.0)
    again.load_state_dict(torch.load(file, weights_only=True))
    moments = [again.state[p][name] for p in twin.parameters() for name in ("exp_avg", "exp_avg_sq")]
    assert {m.dtype for m in moments} == {torch.promote_types(dtype, torch.float32)}
    train(model, optimizer, 3)
    train(twin, again, 3)
    assert [group["step"].item() for group in again.param_groups] == [6, 6]
    assert all(p.equal(q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_step_without_gradients_is_not_counted() -> None:
    model = network()
    optimizer = LAMB(model.parameters())
    assert optimizer.step(lambda: 3.0) == 3.0
    assert optimizer.param_groups[0]["step"].item() == 0 and not optimizer.state


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
        ({"adapt": "no"}, "adapt must be True, False or None, got 'no'"),
    ],
)
def test_impossible_numbers_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LAMB([nn.Parameter(torch.ones(1))], **arguments)


def test_a_sparse_gradient_is_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="LAMB needs dense gradients, got a sparse one"):
        LAMB(embedding.parameters()).step()


def test_apex_is_asked_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with apex's documented arguments, doing the step by timm: what we pass to it is what is tested."""
    timm = pytest.importorskip("timm.optim.lamb")
    with pytest.raises(RuntimeError, match=r"impl=.apex. of LAMB is not available: apex\.optimizers has no FusedLAMB"):
        LAMB(network().parameters(), impl="apex")

    class FusedLAMB(timm.Lamb):
        def __init__(self, params: Any, *, max_grad_norm: float, use_nvlamb: bool) -> None:
            super().__init__(params, max_grad_norm=max_grad_norm, always_adapt=use_nvlamb)

    module = ModuleType("apex.optimizers")
    module.FusedLAMB = FusedLAMB
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)
    model, twin, third = network(), network(), network()
    ours, apex = LAMB(model.parameters(), lr=0.02), LAMB(twin.parameters(), lr=0.5, impl="apex")
    apex.param_groups[0]["lr"] = 0.02  # a schedule's doing
    train(model, ours, 3)
    train(twin, apex, 3)
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-9, atol=1e-10)
    third.load_state_dict(twin.state_dict())
    again = LAMB(third.parameters(), impl="apex")
    again.load_state_dict(copy.deepcopy(apex.state_dict()))
    train(twin, apex, 2)
    train(third, again, 2)
    assert all(p.equal(q) for p, q in zip(twin.parameters(), third.parameters(), strict=True))
