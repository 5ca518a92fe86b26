"""Self-distillation over ranks: two and three gloo ranks with unequal batches give what the joined batch gives.

A linear layer and prototypes are trained; gradients are compared after the averaging of DDP (or the sum).
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_fast import DINOCenter, dino_loss, distributed, ibot_loss, koleo, sinkhorn, swav_loss
from ssl_fast.ops.dispatch import OPS
from tests.ops.conftest import usable
from tests.ranks import run_ranks

SIZES = {2: (5, 3), 3: (4, 0, 6)}
Loss = Callable[["Net", Tensor, Tensor, dist.ProcessGroup | None], Tensor]


class Net(nn.Module):
    """A layer and prototypes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Parameter(torch.randn(6, 7, generator=generator, dtype=torch.float64))
        self.prototypes = nn.Parameter(torch.randn(11, 7, generator=generator, dtype=torch.float64) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x @ self.layer, dim=-1)


def samples(world_size: int) -> tuple[Tensor, Tensor]:
    """Three views [3, N, 6] of the joined batch, and masks [N, 4]: the images' tokens are rows of the first view."""
    generator = torch.Generator().manual_seed(1)
    num_rows = sum(SIZES[world_size])
    return torch.randn(3, num_rows, 6, generator=generator, dtype=torch.float64), torch.rand(
        num_rows, 4, generator=generator
    ) < 0.5


def losses(impl: str, grad_reduce: str) -> dict[str, Loss]:
    """By name; each takes the net, views, masks and the group."""
    teacher = torch.randn(11, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def by_dino(center: str | None, reduction: str, logits: bool = False, weighted: bool = False) -> Loss:
        def loss(net: Net, x: Tensor, masks: Tensor, group: dist.ProcessGroup | None) -> Tensor:
            z, y = net(x), net(x[:2]).detach()
            inputs = (z @ net.prototypes.T, y @ teacher.T) if logits else (z, y, net.prototypes, teacher)
            return dino_loss(
                *inputs, center=center, group=group, grad_reduce=grad_reduce, reduction=reduction,
                weight=masks.sum(1).double() if weighted else None, impl="reference" if logits else impl,
            )  # fmt: skip

        return loss

    def by_ibot(net: Net, x: Tensor, masks: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        rows = net(x[0].repeat_interleave(masks.sum(1), 0))
        inputs = (rows, rows.detach().flip(1), masks, net.prototypes, teacher)
        return ibot_loss(*inputs, center="sinkhorn", group=group, grad_reduce=grad_reduce, impl=impl)

    def by_swav(net: Net, x: Tensor, masks: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        return swav_loss(net(x), net.prototypes, group=group, grad_reduce=grad_reduce, impl=impl)

    def by_koleo(reduction: str) -> Loss:
        settings = {"grad_reduce": grad_reduce, "reduction": reduction, "impl": "auto"}
        return lambda net, x, masks, group: koleo(net(x[0]), group=group, **settings) + net.prototypes.sum() * 0

    return {
        "dino": by_dino(None, "mean"),
        "dino, balanced": by_dino("sinkhorn", "mean"),
        "dino, weighted sum": by_dino("sinkhorn", "sum", weighted=True),
        "dino, weighted": by_dino(None, "mean", weighted=True),
        "dino of logits": by_dino("sinkhorn", "mean", logits=True),
        "ibot": by_ibot,
        "swav": by_swav,
        "koleo": by_koleo("mean"),
        "sum of koleo": by_koleo("sum"),
    }


def step(loss: Loss, x: Tensor, masks: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Net]:
    """Value (squared, so that the upstream gradient is not 1) and the net with its gradients."""
    net = Net()
    value = loss(net, x, masks, group).square()
    value.backward()
    return value.detach(), net


def equal_to_one_rank(rank: int, world_size: int, impl: str) -> None:
    group = distributed.world()
    assert group is not None
    x, masks = samples(world_size)
    mine = x.split(SIZES[world_size], 1)[rank], masks.split(SIZES[world_size])[rank]
    for grad_reduce in ("mean", "sum"):
        for name, loss in losses(impl, grad_reduce).items():
            value, net = step(loss, *mine, group)
            expected, joined = step(loss, x, masks, None)
            torch.testing.assert_close(value, expected, rtol=1e-11, atol=0, msg=name)
            assert all(v == value for v in distributed.all_gather_rows(value[None], group)), f"{name}: same bits"
            distributed.average_gradients(net.parameters(), group)
            factor = 1 if grad_reduce == "mean" else world_size  # the average, made a sum
            for found, wanted in zip(net.parameters(), joined.parameters(), strict=True):
                assert found.grad is not None and wanted.grad is not None
                error = (found.grad * factor - wanted.grad).norm() / wanted.grad.norm().clamp_min(1e-30)
                assert error < 1e-10, f"{name}, {grad_reduce}, {tuple(found.shape)}: {error}"


def assignments_and_centers(rank: int, world_size: int) -> None:
    group, sizes = distributed.world(), SIZES[world_size]
    x = samples(world_size)[0][0]
    x[1] -= 6
    for iterations in (1, 3):
        q = sinkhorn(x.split(sizes)[rank], iterations=iterations, group=group)
        torch.testing.assert_close(q, sinkhorn(x, iterations=iterations).split(sizes)[rank], rtol=1e-10, atol=1e-14)
    shared, alone = DINOCenter(6), DINOCenter(6)
    shared.update_(x.split(sizes)[rank], group=group)
    alone.update_(x)
    torch.testing.assert_close(shared.value, alone.value)


def compiled(rank: int, world_size: int, impl: str) -> None:
    group = distributed.world()
    x, masks = samples(world_size)
    mine = x.split(SIZES[world_size], 1)[rank], masks.split(SIZES[world_size])[rank]
    for name in ("dino", "dino, balanced", "swav", "koleo"):
        torch._dynamo.reset()
        loss = losses(impl, "mean")[name]
        value, net = step(torch.compile(loss, fullgraph=True, backend="aot_eager"), *mine, group)
        expected, eager = step(loss, *mine, group)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(net.layer.grad, eager.layer.grad)


def refused(rank: int, world_size: int) -> None:
    x = torch.randn(SIZES[world_size][rank], 3, dtype=torch.float64, requires_grad=True)
    value = koleo(x, group=distributed.world())
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not work inside torch\.func"):
        torch.func.grad(lambda a: koleo(a, group=distributed.world()))(x.detach())


def everything(rank: int, world_size: int, impls: list[str]) -> None:
    for impl in impls:
        equal_to_one_rank(rank, world_size, impl)
    if world_size == 2:
        compiled(rank, world_size, impls[0])
    assignments_and_centers(rank, world_size)
    refused(rank, world_size)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_equal_one_rank_with_the_joined_batch(world_size: int, tmp_path: Path) -> None:
    impls = [impl for impl in OPS["prototypes"] if impl in usable("prototypes") and impl != "triton"]
    run_ranks(everything, world_size, tmp_path, impls)
