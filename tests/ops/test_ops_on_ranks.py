"""Global negatives: two and three gloo ranks with unequal batches give what one rank gives for the joined batch.

A linear layer, a temperature and weights are trained; gradients are compared after the averaging of DDP (or the sum).
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_fast import MoCoQueue, dcl, distributed, info_nce, nt_xent, supcon
from tests.ops.conftest import usable
from tests.ranks import run_ranks

SIZES = {2: (5, 3), 3: (4, 0, 6)}
Loss = Callable[["Net", tuple[Tensor, ...], dist.ProcessGroup | None], Tensor]


class Net(nn.Module):
    """What has parameters: a layer and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 7, generator=generator, dtype=torch.float64))
        self.temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def samples(world_size: int) -> tuple[Tensor, ...]:
    """Two views [N, 6], weights [N] and labels [N] of the joined batch; -1 takes no part, one class has one row."""
    generator = torch.Generator().manual_seed(1)
    num_rows = sum(SIZES[world_size])
    x1, x2 = torch.randn(2, num_rows, 6, generator=generator, dtype=torch.float64)
    weight = torch.rand(num_rows, generator=generator, dtype=torch.float64)
    return x1, x2, weight, torch.tensor([0, 1, 2, 0, -1, 1, 0, 5, 2, 2])[:num_rows]


def losses(impl: str, grad_reduce: str) -> dict[str, Loss]:
    """By name; each takes the net, (view 1, view 2, weights, labels) and the group."""
    queue = torch.nn.functional.normalize(torch.randn(9, 7, generator=torch.Generator().manual_seed(2)).double())

    def by_nt_xent(reduction: str, weighted: bool) -> Loss:
        return lambda net, data, group: nt_xent(
            net(data[0]), net(data[1]), temperature=net.temperature, weight=data[2] if weighted else None,
            group=group, grad_reduce=grad_reduce, reduction=reduction, impl=impl,
        )  # fmt: skip

    def by_rows(net: Net, data: tuple[Tensor, ...], group: dist.ProcessGroup | None) -> Tensor:
        options = {"temperature": net.temperature, "group": group, "reduction": "none", "impl": impl}
        rows = nt_xent(net(data[0]), net(data[1]), **options)  # type: ignore[arg-type]
        return distributed.global_mean(rows.mean(0), data[2], group, grad_reduce)

    def by_supcon(reduction: str, weighted: bool) -> Loss:
        return lambda net, data, group: supcon(
            net(data[0]), data[3], temperature=net.temperature, weight=data[2] if weighted else None,
            group=group, grad_reduce=grad_reduce, reduction=reduction, impl=impl,
        )  # fmt: skip

    def by_dcl(sigma: float | None, reduction: str) -> Loss:
        return lambda net, data, group: dcl(
            net(data[0]), net(data[1]), temperature=net.temperature, sigma=sigma, weight=data[2],
            group=group, grad_reduce=grad_reduce, reduction=reduction, impl=impl,
        )  # fmt: skip

    def by_three_views(net: Net, data: tuple[Tensor, ...], group: dist.ProcessGroup | None) -> Tensor:
        z1, z2 = net(data[0]), net(data[1])
        options = {"temperature": net.temperature, "grad_reduce": grad_reduce, "impl": impl}
        return nt_xent(z1, z2, z1 - 0.5 * z2, weight=data[2], group=group, **options)  # type: ignore[arg-type]

    def by_info_nce(reduction: str) -> Loss:
        return lambda net, data, group: info_nce(
            net(data[0]), net(data[1]), queue, temperature=net.temperature, weight=data[2],
            group=group, grad_reduce=grad_reduce, reduction=reduction, impl=impl,
        )  # fmt: skip

    return {
        "nt_xent": by_nt_xent("mean", weighted=False),
        "weighted nt_xent": by_nt_xent("mean", weighted=True),
        "sum of nt_xent": by_nt_xent("sum", weighted=True),
        "rows of nt_xent": by_rows,
        "three views": by_three_views,
        "supcon": by_supcon("mean", weighted=False),
        "weighted supcon": by_supcon("mean", weighted=True),
        "sum of supcon": by_supcon("sum", weighted=True),
        "dcl": by_dcl(None, "mean"),
        "weighted dcl": by_dcl(0.5, "mean"),
        "sum of dcl": by_dcl(0.5, "sum"),
        "info_nce": by_info_nce("mean"),
        "sum of info_nce": by_info_nce("sum"),
    }


def step(loss: Loss, data: tuple[Tensor, ...], group: dist.ProcessGroup | None) -> tuple[Tensor, Net, Tensor]:
    """Value (squared, so that the upstream gradient is not 1), the net with gradients, gradient of the weights."""
    net, weight = Net(), data[2].clone().requires_grad_()
    value = loss(net, (*data[:2], weight, *data[3:]), group).square()
    value.backward()
    return value.detach(), net, torch.zeros_like(weight) if weight.grad is None else weight.grad


def equal_to_one_rank(rank: int, world_size: int, impl: str) -> None:
    group = distributed.world()
    assert group is not None
    data = samples(world_size)
    mine = tuple(t.split(SIZES[world_size])[rank] for t in data)
    for grad_reduce in ("mean", "sum"):
        for name, loss in losses(impl, grad_reduce).items():
            value, net, dweight = step(loss, mine, group)
            expected, joined, joined_dweight = step(loss, data, None)
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=0, msg=name)
            assert all(v == value for v in distributed.all_gather_rows(value[None], group)), f"{name}: same bits"
            distributed.average_gradients(net.parameters(), group)
            factor = 1 if grad_reduce == "mean" else world_size  # the average, made a sum
            for found, wanted in zip(net.parameters(), joined.parameters(), strict=True):
                assert found.grad is not None and wanted.grad is not None
                error = (found.grad * factor - wanted.grad).norm() / wanted.grad.norm()
                assert error < 1e-12, f"{name}, {grad_reduce}, {tuple(found.shape)}: {error}"
            share = joined_dweight.split(SIZES[world_size])[rank] * (world_size if grad_reduce == "mean" else 1)
            torch.testing.assert_close(dweight, share, rtol=1e-10, atol=1e-12)


def compiled(rank: int, world_size: int, impl: str) -> None:
    group = distributed.world()
    mine = tuple(t.split(SIZES[world_size])[rank] for t in samples(world_size))
    for name, loss in losses(impl, "mean").items():
        if name in ("nt_xent", "weighted nt_xent", "sum of nt_xent", "weighted supcon"):
            torch._dynamo.reset()
            value, net, _ = step(torch.compile(loss, fullgraph=True, backend="aot_eager"), mine, group)
            expected, eager, _ = step(loss, mine, group)
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(net.weight.grad, eager.weight.grad)


def queues(rank: int, world_size: int) -> None:
    group, sizes = distributed.world(), SIZES[world_size]
    keys = samples(world_size)[0]
    for size in (4, 7, 64):
        shared, alone = (MoCoQueue(size, 6, generator=torch.Generator().manual_seed(0)) for _ in range(2))
        for _ in range(3):
            shared.enqueue_(keys.split(sizes)[rank], group)
            alone.enqueue_(keys)
        assert torch.equal(shared.rows, alone.rows) and shared.pointer == alone.pointer


def refused(rank: int, world_size: int) -> None:
    z = torch.randn(SIZES[world_size][rank], 3, dtype=torch.float64, requires_grad=True)
    value = nt_xent(z, z, group=distributed.world())
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(value, z, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not work inside torch\.func"):
        torch.func.grad(lambda a: nt_xent(a, a, group=distributed.world()))(z.detach())


def everything(rank: int, world_size: int, impls: list[str]) -> None:
    for impl in impls:
        equal_to_one_rank(rank, world_size, impl)
    if world_size == 2:
        compiled(rank, world_size, impls[0])
    queues(rank, world_size)
    refused(rank, world_size)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_equal_one_rank_with_the_joined_batch(world_size: int, tmp_path: Path) -> None:
    impls = sorted((set(usable("nt_xent")) & set(usable("info_nce"))) - {"triton"})
    run_ranks(everything, world_size, tmp_path, impls)
