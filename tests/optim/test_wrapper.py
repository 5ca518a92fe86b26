"""What wrappers share with the optimiser inside, and copies of all optimisers."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_fast import EMA, LAMB, LARS, SAM, GradientCentralization, Lookahead

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "LARS": lambda params: LARS(params, lr=0.1),
    "LAMB": lambda params: LAMB(params, lr=0.1),
    "Lookahead": lambda params: Lookahead(torch.optim.SGD(params, lr=0.1, momentum=0.9), k=2),
    "GradientCentralization": lambda params: GradientCentralization(torch.optim.SGD(params, lr=0.1, momentum=0.9)),
    "SAM": lambda params: SAM(params, torch.optim.SGD, lr=0.1, momentum=0.9),
}


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, num: int) -> Tensor:
    """The weights after `num` steps on fixed data."""
    x = torch.linspace(-1, 1, 24).view(6, 4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(num):
        closure()
        optimizer.step(closure)  # type: ignore[arg-type]
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_goes_on_as_the_original(name: str, copied: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = OPTIMIZERS[name](model.parameters())
    steps(model, optimizer, 3)
    other, other_optimizer = copied((model, optimizer))
    assert torch.equal(steps(other, other_optimizer, 3), steps(model, optimizer, 3))
    assert not torch.equal(
        steps(other, other_optimizer, 1), torch.cat([p.detach().flatten() for p in model.parameters()])
    )


@pytest.mark.parametrize("name", ["Lookahead", "GradientCentralization", "SAM"])
def test_a_state_loaded_into_the_base_is_the_wrappers_too(name: str) -> None:
    model = nn.Linear(4, 3)
    optimizer: Any = OPTIMIZERS[name](model.parameters())
    steps(model, optimizer, 2)
    optimizer.base.load_state_dict(copy.deepcopy(optimizer.base.state_dict()))
    assert optimizer.param_groups is optimizer.base.param_groups and optimizer.state is optimizer.base.state
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5).step()
    assert optimizer.base.param_groups[0]["lr"] == 0.05
    steps(model, optimizer, 1)


def test_buffers_that_were_replaced_are_averaged() -> None:
    student = nn.BatchNorm1d(2)
    teacher = copy.deepcopy(student)
    ema = EMA(teacher, student, momentum=0.0, buffers=True)
    student.double(), teacher.double()
    student.running_mean.fill_(5.0)  # type: ignore[union-attr, operator]
    ema.update_()
    assert teacher.running_mean.tolist() == [5.0, 5.0]  # type: ignore[union-attr, operator]


def test_tensors_given_one_by_one_stay_when_buffers_are_asked_for() -> None:
    student, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    ema = EMA(teacher.parameters(), student.parameters(), momentum=0.0, buffers=True)
    ema.update_(), ema.update_()
    assert torch.equal(teacher.weight, student.weight)
