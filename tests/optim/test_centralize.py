"""Gradient centralisation in front of an optimiser."""

import torch
from torch import nn

from ssl_fast.optim import SAM, GradientCentralization


def test_the_inner_optimizer_sees_centralised_gradients_with_and_without_a_closure() -> None:
    for with_closure in (False, True):
        p, bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
        optimizer = GradientCentralization(torch.optim.SGD([p, bias], lr=1.0))

        def closure(p=p, bias=bias) -> float:
            p.grad, bias.grad = torch.tensor([[1.0, 3.0], [5.0, 5.0]]), torch.ones(2)
            return 7.0

        if with_closure:
            assert optimizer.step(closure) == 7.0
        else:
            closure()
            assert optimizer.step() is None
        assert p.tolist() == [[1.0, -1.0], [0.0, 0.0]]
        assert bias.tolist() == [-1.0, -1.0]


def test_both_passes_of_sam_are_centralised() -> None:
    p, seen = nn.Parameter(torch.zeros(1, 2)), []
    optimizer = GradientCentralization(SAM([p], torch.optim.SGD, rho=1.0, lr=1.0))

    def closure() -> float:
        seen.append(p.tolist()[0])
        p.grad = torch.tensor([[2.0, 8.0]])
        return 0.0

    optimizer.step(closure)
    torch.testing.assert_close(torch.tensor(seen[1]), torch.tensor([-1.0, 1.0]) / 2**0.5)
    assert p.tolist() == [[3.0, -3.0]]


def test_weights_keep_the_mean_they_started_with() -> None:
    model = nn.Linear(6, 4, dtype=torch.float64)
    means = model.weight.mean(dim=1).detach().clone()
    optimizer = GradientCentralization(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 6, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(model.weight.mean(dim=1).detach(), means, rtol=0, atol=1e-12)
