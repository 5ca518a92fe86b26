"""The momentum teacher: hand-worked averages, no gradients, its own memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_fast.models.teacher import Teacher


def student(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_starts_equal_and_shares_nothing():
    module = student()
    teacher = Teacher(module)
    x = torch.randn(5, 3)
    assert torch.equal(teacher.eval()(x), module.eval()(x))
    with torch.no_grad():
        module[0].weight.add_(1.0)
    assert not torch.equal(teacher(x), module(x))


def test_average_by_hand():
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, 1.0)
    teacher = Teacher(module)
    nn.init.constant_(module.weight, 2.0)
    teacher.update_(module, 0.75)
    assert teacher.module.weight.item() == 1.25
    teacher.update_(module, 0.5)
    assert teacher.module.weight.item() == 1.625


@pytest.mark.parametrize("momentum", [0.0, 0.996, 1.0])
def test_against_the_formula(momentum):
    module, other = student(1), student(2)
    teacher = Teacher(module)
    teacher.update_(other, momentum)
    for t, a, b in zip(teacher.module.parameters(), module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(t, momentum * a + (1 - momentum) * b)


def test_buffers_are_copied():
    module = student()
    teacher = Teacher(module)
    module.train()(torch.randn(16, 3) * 7 + 3)
    teacher.update_(module, 1.0)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(teacher.module[1], name), getattr(module[1], name))
    assert teacher.module[1].num_batches_tracked == 1


def test_no_gradients():
    module = student()
    teacher = Teacher(module)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())
    x = torch.randn(5, 3, requires_grad=True)
    assert not teacher(x).requires_grad


def test_follows_the_owners_mode():
    owner = nn.ModuleDict({"teacher": Teacher(student())})
    assert owner.eval()["teacher"].module[1].training is False
    assert owner.train()["teacher"].module[1].training is True


def test_refusals():
    teacher = Teacher(student())
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1.5"):
        teacher.update_(student(), 1.5)
    with pytest.raises(ValueError, match="must have the teacher's structure"):
        teacher.update_(nn.Linear(3, 4), 0.5)


def test_state_round_trip():
    teacher, other = Teacher(student(1)), Teacher(student(2))
    other.load_state_dict(teacher.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(teacher.eval()(x), other.eval()(x))


def test_stochastic_depth_is_the_students_alone():
    from timm.layers import DropPath

    module = nn.Sequential(nn.Linear(3, 4), DropPath(0.5))
    teacher = Teacher(module).train()
    x = torch.randn(64, 3)
    assert module[1].drop_prob == 0.5 and bool((module(x) == 0).all(1).any())
    assert torch.equal(teacher(x), module[0](x))
