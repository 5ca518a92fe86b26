"""What lightly's tests ask of its losses, asked of ours in our words.

A test's name begins with the project. Expected numbers are worked out here, row by row, from the definitions. Cases
that need a GPU there run on the CPU.
"""

import math
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.dropin import lightly

GATHERING = ["NTXentLoss", "DCLLoss", "DCLWLoss", "VICRegLoss", "BarlowTwinsLoss", "SwaVLoss"]
BATCHES = range(1, 20, 3)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def every(*choices: Iterable[Any]) -> list[tuple[Any, ...]]:
    return list(product(*choices))


def by_rows(z0: Tensor, z1: Tensor, temperature: float) -> float:
    """NT-Xent, a row at a time in Python."""
    z = F.normalize(torch.cat((z0, z1)).double(), dim=1).tolist()
    total = 0.0
    for i, row in enumerate(z):
        s = [sum(a * b for a, b in zip(row, other, strict=True)) / temperature for other in z]
        positive = s[(i + len(z0)) % len(z)]
        total += math.log(sum(math.exp(v - positive) for j, v in enumerate(s) if j != i))
    return total / len(z)


def symmetric(loss: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """Asserts that the order of the views does not matter; returns the value."""
    value = loss(first, second)
    torch.testing.assert_close(value, loss(second, first), rtol=1e-5, atol=1e-5)
    return value


def trains(loss: nn.Module) -> None:
    """Asserts that a step by this loss moves a layer."""
    layer = nn.Linear(6, 6)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    loss(layer(draw(4, 6)), layer(draw(4, 6, seed=1))).backward()
    optimizer.step()
    assert layer.weight.isfinite().all() and not torch.equal(layer.weight, before)


# lightly: tests/loss, tests/models/modules/test_memory_bank.py


@pytest.mark.parametrize("name", GATHERING)
def test_lightly_gather_distributed_is_an_option(name: str) -> None:
    option = "sinkhorn_gather_distributed" if name == "SwaVLoss" else "gather_distributed"
    getattr(lightly, name)(**{option: True})


@pytest.mark.parametrize("name", GATHERING)
def test_lightly_gather_distributed_without_torch_distributed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: False)
    option = "sinkhorn_gather_distributed" if name == "SwaVLoss" else "gather_distributed"
    getattr(lightly, name)(**{option: False})
    with pytest.raises(ValueError, match="gather_distributed"):
        getattr(lightly, name)(**{option: True})


@pytest.mark.parametrize(("size", "temperature"), every(BATCHES, [0.1, 1, 10]))
def test_lightly_nt_xent_with_random_values(size: int, temperature: float) -> None:
    z0, z1 = draw(size, 32), draw(size, 32, seed=1)
    loss = symmetric(lightly.NTXentLoss(temperature), z0, z1)
    assert loss.item() == pytest.approx(by_rows(z0, z1, temperature), abs=1e-5)


@pytest.mark.parametrize(("size", "temperature"), every(BATCHES, [0.1, 1, 10]))
def test_lightly_nt_xent_with_correlated_embeddings(size: int, temperature: float) -> None:
    """All rows point the same way: log(2 N - 1)."""
    z0 = torch.ones(size, 2) * torch.arange(1.0, size + 1)[:, None]
    assert lightly.NTXentLoss(temperature)(z0, 2 * z0).item() == pytest.approx(math.log(2 * size - 1), abs=1e-5)


@pytest.mark.parametrize("size", BATCHES)
def test_lightly_nt_xent_with_a_negative_temperature(size: int) -> None:
    symmetric(lightly.NTXentLoss(temperature=-1.0), draw(size, 8), draw(size, 8, seed=1))


def test_lightly_nt_xent_with_a_temperature_of_zero() -> None:
    with pytest.raises(ValueError, match="Illegal temperature"):
        lightly.NTXentLoss(temperature=0.0)


@pytest.mark.parametrize("size", BATCHES)
def test_lightly_nt_xent_with_a_memory_bank(size: int) -> None:
    loss = lightly.NTXentLoss(memory_bank_size=(64, 32))
    assert loss(draw(size, 32), draw(size, 32, seed=1)).item() > 0


@pytest.mark.parametrize("size", [-1, (-1, 4), (4, 4, 4)])
def test_lightly_memory_bank_sizes(size: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Illegal memory bank size"):
        lightly.MemoryBankModule(size)


def test_lightly_memory_bank_without_rows_gives_none() -> None:
    x = draw(3, 2)
    output, bank = lightly.MemoryBankModule(0)(x)
    assert output is x and bank is None


def test_lightly_memory_bank_takes_batches_in_turn() -> None:
    bank = lightly.MemoryBankModule((9, 2), feature_dim_first=False)
    for step in range(6):
        x = draw(3, 2, seed=step)
        _, before = bank(x, update=True)
        expected = before.clone()
        expected[3 * step % 9 : 3 * step % 9 + 3] = x
        assert torch.equal(bank(x)[1], expected)


def test_lightly_memory_bank_drops_what_does_not_fit() -> None:
    bank = lightly.MemoryBankModule((10, 2), feature_dim_first=False)
    for step, (begin, kept) in enumerate([(0, 3), (3, 3), (6, 3), (9, 1), (0, 3)]):
        x = draw(3, 2, seed=step)
        bank(x, update=True)
        assert torch.equal(bank(x)[1][begin : begin + kept], x[:kept])


def test_lightly_memory_bank_as_a_parent_class() -> None:
    class Loss(lightly.MemoryBankModule):
        def forward(self, output: Tensor) -> Tensor:
            output, negatives = super().forward(output, update=True)
            return (output @ negatives).sum()

    assert Loss((5, 2))(draw(3, 2)).isfinite()


@pytest.mark.parametrize(("size", "sigma"), every([1, 4, 9], [1e-2, 0.5, 1.0, 1e6]))
def test_lightly_mises_fisher_weights(size: int, sigma: float) -> None:
    from ssl_fast.dropin.lightly.contrastive import negative_mises_fisher_weights

    z0, z1 = (F.normalize(draw(size, 5, seed=seed), dim=1) for seed in (0, 1))
    weights = negative_mises_fisher_weights(z0, z1, sigma)
    assert weights.shape == (size,) and not weights.requires_grad
    assert weights.mean().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "dim", "temperature"), every(["DCLLoss", "DCLWLoss"], [2, 3, 8], [1, 3, 64], [0.1, 0.5, 1.0])
)
def test_lightly_dcl_forward(name: str, size: int, dim: int, temperature: float) -> None:
    symmetric(getattr(lightly, name)(temperature=temperature), draw(size, dim), draw(size, dim, seed=1))


def test_lightly_dcl_with_a_weight_function() -> None:
    loss = lightly.DCLLoss(weight_fn=lambda z0, z1: torch.sum((z0 - z1) ** 2, dim=1))
    symmetric(loss, draw(5, 4), draw(5, 4, seed=1))


@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss", "VICRegLoss", "BarlowTwinsLoss"])
def test_lightly_backprop(name: str) -> None:
    trains(getattr(lightly, name)())


@pytest.mark.parametrize(
    ("batch", "num_local", "dim", "teacher_temp", "student_temp", "momentum", "epoch"),
    every([1, 3], [0, 2], [4, 16], [0.02, 0.04], [0.1, 0.5], [0.0, 0.5, 1.0], [None, 0, 5]),
)
def test_lightly_dino_is_the_original_dino(
    batch: int, num_local: int, dim: int, teacher_temp: float, student_temp: float, momentum: float, epoch: int | None
) -> None:
    """The authors' loop over pairs of views, its gradients of the student, and its centre."""
    loss = lightly.DINOLoss(dim, 0.01, teacher_temp, 3, student_temp, momentum)
    temperature = 0.01 if epoch == 0 else teacher_temp
    center = torch.zeros(dim)
    for step in range(2):
        seeds = range(10 * step, 10 * step + 4 + num_local)
        teacher = [draw(batch, dim, seed=seed).requires_grad_() for seed in seeds[:2]]
        student = [draw(batch, dim, seed=seed).requires_grad_() for seed in seeds[2:]]
        terms = [
            -(((t - center) / temperature).softmax(1).detach() * (s / student_temp).log_softmax(1)).sum(1).mean()
            for (a, t), (b, s) in product(enumerate(teacher), enumerate(student))
            if a != b
        ]
        expected = sum(terms) / len(terms)
        got = loss(teacher, student, epoch=epoch)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        for mine, theirs in zip(torch.autograd.grad(got, student), torch.autograd.grad(expected, student), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        center = center * momentum + torch.cat(teacher).detach().mean(0) * (1 - momentum)
        torch.testing.assert_close(loss.center.flatten(), center)


def test_lightly_dino_center_mode() -> None:
    with pytest.raises(ValueError, match="Unknown mode"):
        lightly.DINOLoss(center_mode="wrong")


def test_lightly_dino_with_a_temperature_by_the_call() -> None:
    views = [draw(3, 8, seed=seed) for seed in range(2)]
    by_call = lightly.DINOLoss(8, teacher_temp=0.04)(views, views, teacher_temp=0.07)
    assert by_call.item() == pytest.approx(lightly.DINOLoss(8, teacher_temp=0.07)(views, views).item())


def test_lightly_dino_of_one_view_each() -> None:
    with pytest.raises(ValueError, match="view"):
        lightly.DINOLoss(8)([draw(3, 8)], [draw(3, 8)])


@pytest.mark.parametrize(("size", "name"), every(range(2, 20, 3), ["VICRegLoss", "BarlowTwinsLoss"]))
def test_lightly_redundancy_forward(size: int, name: str) -> None:
    symmetric(getattr(lightly, name)(), draw(size, 32), draw(size, 32, seed=1))


@pytest.mark.parametrize("shapes", [((1, 8), (1, 8)), ((4, 8), (5, 8))], ids=["batch of 1", "unequal"])
def test_lightly_vicreg_refuses(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """There an AssertionError: a stated difference."""
    with pytest.raises(ValueError, match="z_a and z_b"):
        lightly.VICRegLoss()(draw(*shapes[0]), draw(*shapes[1]))


@pytest.mark.parametrize("size", [2, 5, 32])
def test_lightly_vicreg_is_the_original_vicreg(size: int) -> None:
    """The authors' code: variances and covariances of N - 1, each view's half of the variance term."""
    x, y = draw(size, 8), draw(size, 8, seed=1)
    expected = 25 * F.mse_loss(x, y)
    for z in (x, y):
        centred = z - z.mean(0)
        covariance = centred.T @ centred / (size - 1)
        expected += 25 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2
        expected += (covariance - covariance.diagonal().diag()).square().sum() / 8
    torch.testing.assert_close(lightly.VICRegLoss()(x, y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [4, 32])
def test_lightly_barlow_twins_is_the_original_barlow_twins(size: int) -> None:
    """The authors' code: a batch normalisation without weights, then the correlation."""
    norm = nn.BatchNorm1d(8, affine=False)
    x, y = draw(size, 8), draw(size, 8, seed=1)
    c = norm(x).T @ norm(y) / size
    off = c - c.diagonal().diag()
    expected = (c.diagonal() - 1).square().sum() + 5e-3 * off.square().sum()
    torch.testing.assert_close(lightly.BarlowTwinsLoss()(x, y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_low", "queue", "size"), every([0, 1, 6], [False, True], [1, 32]))
def test_lightly_swav_of_unit_matrices(num_low: int, queue: bool, size: int) -> None:
    """Crops that all agree have a small loss; with one sample and no queue all prototypes are assigned alike."""
    outputs = torch.eye(size, 32)
    queues = [torch.eye(128, 32)] * 2 if queue else None
    loss = lightly.SwaVLoss()([outputs] * 2, [outputs] * num_low, queues).item()
    if size == 1 and not queue:
        assert loss == pytest.approx(((outputs / 0.1).logsumexp(1) - outputs.mean() / 0.1).item(), rel=1e-5)
    else:
        assert loss < 0.5


@pytest.mark.parametrize("size", BATCHES)
def test_lightly_negative_cosine_forward(size: int) -> None:
    symmetric(lightly.NegativeCosineSimilarity(), draw(size, 32), draw(size, 32, seed=1))
