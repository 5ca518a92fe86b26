"""EMA: the teacher follows the student."""

import copy

import pytest
import torch
from torch import nn

from ssl_fast.optim import EMA


def test_the_teacher_is_the_weighted_mean_of_all_past_students() -> None:
    student = nn.Linear(3, 2, dtype=torch.float64)
    teacher = copy.deepcopy(student).requires_grad_(False)
    history = [student.weight.detach().clone()]
    ema = EMA(teacher, student, momentum=0.8)
    for seed in range(5):
        torch.manual_seed(seed)
        nn.init.normal_(student.weight)
        history.append(student.weight.detach().clone())
        ema.update_()
    expected = 0.8**5 * history[0] + sum(0.2 * 0.8 ** (5 - i) * history[i] for i in range(1, 6))
    torch.testing.assert_close(teacher.weight, expected, rtol=1e-12, atol=1e-14)


def test_a_schedule_may_give_the_momentum() -> None:
    target, source = torch.zeros(4), torch.ones(4)
    ema = EMA([target], [source])
    ema.update_(0.5)
    ema.update_(0.0)
    assert target.equal(source)
    source.zero_()
    ema.update_()
    torch.testing.assert_close(target, torch.full((4,), 0.996))


def test_a_float32_teacher_sees_steps_that_bfloat16_would_lose() -> None:
    student = torch.full((8,), 2.0, dtype=torch.bfloat16)
    teacher = torch.ones(8)
    ema = EMA([teacher], [student], momentum=0.999)
    for _ in range(100):
        ema.update_()
    torch.testing.assert_close(teacher, torch.full((8,), 2 - 0.999**100), rtol=1e-5, atol=0)


def test_buffers_follow_only_when_asked() -> None:
    student = nn.BatchNorm1d(4)
    student.train()(torch.randn(16, 4) + 3)
    for buffers in (False, True):
        teacher = nn.BatchNorm1d(4)
        EMA(teacher, student, momentum=0.5, buffers=buffers).update_()
        expected = 0.5 * student.running_mean if buffers else torch.zeros(4)
        torch.testing.assert_close(teacher.running_mean, expected)
        assert teacher.num_batches_tracked.item() == (1 if buffers else 0)


def test_the_student_and_its_gradients_are_untouched() -> None:
    student = nn.Linear(3, 2)
    teacher = copy.deepcopy(student)
    student(torch.ones(1, 3)).sum().backward()
    before = [p.detach().clone() for p in student.parameters()]
    nn.init.ones_(teacher.weight)
    EMA(teacher, student, momentum=0.9).update_()
    assert all(p.equal(b) for p, b in zip(student.parameters(), before, strict=True))
    assert all(p.grad is None for p in teacher.parameters())


def test_mismatches_are_named() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(2, 4\) at position 0"):
        EMA(nn.Linear(3, 2), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"got 1 and 2 tensors"):
        EMA([torch.zeros(1)], [torch.zeros(1), torch.zeros(1)])
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got -0.1"):
        EMA([], [], momentum=-0.1)
