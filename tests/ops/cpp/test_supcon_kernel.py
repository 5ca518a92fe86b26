"""The C++ kernels with classes and decoupled, against the literal formula, for every instruction set that is here."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.classes import LEFT_OUT, Classes
from ssl_fast.ops.cpp import nt_xent


def literal(
    x: Tensor, labels: Tensor, coef: Tensor, inv_temperature: float, decoupled: bool = False
) -> tuple[Tensor, Tensor]:
    """loss and dx in float64; without a loss 0."""
    x = x.double().requires_grad_()
    z, itself = F.normalize(x, dim=1, eps=1e-12), torch.eye(len(x), dtype=torch.bool)
    used = labels != LEFT_OUT
    positive = (labels[:, None] == labels) & ~itself & used[:, None]
    s = z @ z.T * inv_temperature
    out = itself | ~used | (positive if decoupled else torch.zeros_like(itself))
    log_l = s.masked_fill(out, -1e300).logsumexp(1)
    count = positive.sum(1)
    loss = torch.where(count > 0, log_l - s.masked_fill(~positive, 0).sum(1) / count.clamp_min(1), 0)
    return loss.detach(), torch.autograd.grad((loss * coef.double()).sum(), x)[0]


def rows(N: int, D: int, num_classes: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rows around their classes' centres; among the classes pairs, single rows, and rows that take no part."""
    random = torch.Generator().manual_seed(N * D)
    labels = torch.randint(num_classes, (N,), generator=random)
    labels[:8] = torch.tensor([101, 102, 101, 102, 103, 104, LEFT_OUT, LEFT_OUT])[:N]
    centres = torch.randn(num_classes + 8, D, generator=random, dtype=torch.float64)
    x = centres[labels.clamp_min(0) % (num_classes + 8)]
    return x + spread * torch.randn(N, D, generator=random, dtype=torch.float64), labels


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("N", "D", "num_classes"), [(9, 3, 1), (194, 33, 5), (579, 65, 40)])
@pytest.mark.parametrize("inv_temperature", [5.0, 60.0], ids=["fixed", "online"])
def test_literal(isa: str, dtype: torch.dtype, N: int, D: int, num_classes: int, inv_temperature: float) -> None:
    x, labels = rows(N, D, num_classes)
    x, coef, classes = x.to(dtype), torch.rand(N) + 0.1, Classes.of(labels)
    loss, dx = literal(x, labels, coef, inv_temperature)
    eps = 1e-12 if dtype == torch.float64 else 5e-6
    for span in ((0, N), (3, N - 2)):
        part = slice(*span)
        found, _ = nt_xent.forward(x, classes.partner, span, inv_temperature, True, classes)
        log_l = nt_xent.forward(x, classes.partner, (0, N), inv_temperature, True, classes)[1]
        found_dx, _ = nt_xent.backward(x, classes.partner, coef, log_l, span, inv_temperature, True, classes)
        assert error(found, loss[part]) < eps
        assert error(found_dx, dx[part]) < 10 * eps


@pytest.mark.parametrize("spread", [0.3, 0.05])
@pytest.mark.parametrize("inv_temperature", [10.0, 50.0], ids=["fixed", "online"])
def test_classes_that_draw_together(isa: str, spread: float, inv_temperature: float) -> None:
    """1 / |P| and the probabilities nearly cancel: what is left keeps most of its digits."""
    x, labels = rows(400, 64, 6, spread)
    coef, classes = torch.full((400,), 1 / 400), Classes.of(labels)
    loss, dx = literal(x.float(), labels, coef, inv_temperature)
    found, log_l = nt_xent.forward(x.float(), classes.partner, (0, 400), inv_temperature, True, classes)
    found_dx, _ = nt_xent.backward(x.float(), classes.partner, coef, log_l, (0, 400), inv_temperature, True, classes)
    assert error(found, loss) < 2e-6
    assert error(found_dx, dx) < 2e-6 * inv_temperature


@pytest.mark.parametrize("inv_temperature", [5.0, 60.0], ids=["fixed", "online"])
@pytest.mark.parametrize("N", [2, 8, 400])
def test_decoupled(isa: str, N: int, inv_temperature: float) -> None:
    x = torch.randn(N, 20, generator=torch.Generator().manual_seed(N))
    labels, positive, coef = torch.arange(N // 2).repeat(2), torch.arange(N).roll(N // 2), torch.rand(N)
    loss, dx = literal(x, labels, coef, inv_temperature, decoupled=True)
    found, log_l = nt_xent.forward(x, positive, (0, N), inv_temperature, True, None, True)
    found_dx, _ = nt_xent.backward(x, positive, coef, log_l, (0, N), inv_temperature, True, None, True)
    if N == 2:
        assert not found.any() and not found_dx.any() and bool((log_l == torch.inf).all())
        return
    assert error(found, loss) < 5e-6 and error(found_dx, dx) < 2e-5
    some_dx, _ = nt_xent.backward(x, positive, coef, log_l, (1, N - 1), inv_temperature, True, None, True)
    assert error(some_dx, dx[1:-1]) < 2e-5


def test_bits_do_not_depend_on_threads(threads: None) -> None:
    x, labels = rows(700, 64, 9)
    x, coef, classes = x.float(), torch.rand(700), Classes.of(labels)

    def run(span: tuple[int, int]) -> list[Tensor]:
        loss, log_l = nt_xent.forward(x, classes.partner, (0, 700), 10.0, True, classes)
        return [loss, log_l, *nt_xent.backward(x, classes.partner, coef, log_l, span, 10.0, True, classes)]

    for span in ((0, 700), (5, 691)):
        torch.set_num_threads(1)
        expected = run(span)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert all(map(torch.equal, run(span), expected))


def test_survives_fork(threads: None) -> None:
    torch.set_num_threads(2)
    x, labels = rows(600, 64, 9)
    x, classes = x.float(), Classes.of(labels)
    expected = nt_xent.forward(x, classes.partner, (0, 600), 10.0, True, classes)[0]
    child = os.fork()
    if child == 0:
        same = torch.equal(nt_xent.forward(x, classes.partner, (0, 600), 10.0, True, classes)[0], expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("wrong", [-2, 4])
def test_classes_must_be_numbers_of_rows(wrong: int) -> None:
    ids = torch.tensor([0, 0, wrong, 0])
    classes = Classes(ids, torch.full((4,), 3), torch.arange(4))
    with pytest.raises(ValueError, match=r"classes\[2\] must be in \[-1, 4\), got"):
        nt_xent.forward(torch.randn(4, 3), classes.partner, (0, 4), 10.0, True, classes)
