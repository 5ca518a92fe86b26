"""Statistics over the ranks: two and three gloo ranks with unequal batches give what one gives for the joined batch.

A linear layer is trained; gradients are compared after the averaging of DDP (or the sum).
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_fast import barlow_twins, byol_loss, distributed, simsiam_loss, vicreg
from tests.ranks import run_ranks

SIZES = {2: (5, 3), 3: (4, 0, 6)}
Loss = Callable[[Tensor, Tensor, Tensor, dist.ProcessGroup | None], Tensor]  # two views [n, D], weights [n], group


def samples(world_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two views [N, 6] and weights [N] of the joined batch."""
    generator = torch.Generator().manual_seed(1)
    num_rows = sum(SIZES[world_size])
    x1 = torch.randn(num_rows, 6, generator=generator, dtype=torch.float64)
    x2 = x1 + 0.5 * torch.randn(num_rows, 6, generator=generator, dtype=torch.float64)
    return x1, x2, torch.rand(num_rows, generator=generator, dtype=torch.float64)


def losses(grad_reduce: str) -> dict[str, Loss]:
    def weighted(function: Callable[..., Tensor], reduction: str) -> Loss:
        return lambda p, z, weight, group: function(
            p, z, weight=weight, group=group, grad_reduce=grad_reduce, reduction=reduction
        )

    def of_views(function: Callable[..., Tensor]) -> Loss:
        return lambda z1, z2, weight, group: function(z1, z2, group=group, grad_reduce=grad_reduce)

    return {
        "vicreg": of_views(vicreg),
        "barlow_twins": of_views(barlow_twins),
        "byol": weighted(byol_loss, "mean"),
        "sum of byol": weighted(byol_loss, "sum"),
        "simsiam": weighted(simsiam_loss, "mean"),
    }


def step(
    loss: Loss, data: tuple[Tensor, ...], dim: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, nn.Parameter]:
    """Value (squared, so that the upstream gradient is not 1) and the layer with its gradient."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Parameter(torch.randn(6, dim, generator=generator, dtype=torch.float64) / 3)
    value = loss(data[0] @ layer, data[1] @ layer, data[2], group).square()
    value.backward()
    return value.detach(), layer


def equal_to_one_rank(rank: int, world_size: int) -> None:
    group = distributed.world()
    assert group is not None
    data = samples(world_size)
    mine = tuple(t.split(SIZES[world_size])[rank] for t in data)
    for grad_reduce in ("mean", "sum"):
        for name, loss in losses(grad_reduce).items():
            for dim in (4, 30):  # more rows than columns, and fewer: the covariance and the Gram side
                value, layer = step(loss, mine, dim, group)
                expected, joined = step(loss, data, dim, None)
                torch.testing.assert_close(value, expected, rtol=1e-12, atol=0, msg=name)
                assert all(v == value for v in distributed.all_gather_rows(value[None], group)), f"{name}: same bits"
                distributed.average_gradients([layer], group)
                factor = 1 if grad_reduce == "mean" else world_size  # the average, made a sum
                assert layer.grad is not None and joined.grad is not None
                error = (layer.grad * factor - joined.grad).norm() / joined.grad.norm()
                assert error < 1e-11, f"{name}, {grad_reduce}, {dim}: {error}"


def compiled(rank: int, world_size: int) -> None:
    group = distributed.world()
    mine = tuple(t.split(SIZES[world_size])[rank] for t in samples(world_size))
    for name in ("vicreg", "barlow_twins"):
        torch._dynamo.reset()
        loss = losses("mean")[name]
        value, layer = step(torch.compile(loss, fullgraph=True, backend="aot_eager"), mine, 30, group)
        expected, eager = step(loss, mine, 30, group)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(layer.grad, eager.grad)


def refused(rank: int, world_size: int) -> None:
    z = torch.randn(SIZES[world_size][rank], 3, dtype=torch.float64, requires_grad=True)
    group = distributed.world()
    for function in (vicreg, barlow_twins):
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            torch.autograd.grad(function(z, z, group=group), z, create_graph=True)
        with pytest.raises(RuntimeError, match=r"does not work inside torch\.func"):
            torch.func.grad(lambda a, f=function: f(a, a, group=group))(z.detach())


def everything(rank: int, world_size: int) -> None:
    equal_to_one_rank(rank, world_size)
    if world_size == 2:
        compiled(rank, world_size)
    refused(rank, world_size)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_equal_one_rank_with_the_joined_batch(world_size: int, tmp_path: Path) -> None:
    run_ranks(everything, world_size, tmp_path)
