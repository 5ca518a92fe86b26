"""Global pairs: two and three gloo ranks with unequal batches give what one rank gives for the joined batch.

Two linear layers, a scale, a bias and weights are trained; gradients are compared after DDP's averaging (or the sum).
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_fast import clip_loss, distributed, info_nce, siglip_loss
from tests.ops.conftest import usable
from tests.ranks import run_ranks

SIZES = {2: (5, 3), 3: (4, 0, 6)}
Loss = Callable[["Net", tuple[Tensor, ...], dist.ProcessGroup | None], Tensor]


class Net(nn.Module):
    """What has parameters: a layer for each tower, scale and bias."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 6, 7, generator=generator, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(4.0, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))

    def forward(self, data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return data[0] @ self.weight[0], data[1] @ self.weight[1]


def samples(world_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the towers see [N, 6] and weights [N] of the joined batch."""
    generator = torch.Generator().manual_seed(1)
    num_rows = sum(SIZES[world_size])
    image, text = torch.randn(2, num_rows, 6, generator=generator, dtype=torch.float64)
    return image, text, torch.rand(num_rows, generator=generator, dtype=torch.float64)


def losses(impl: str, grad_reduce: str) -> dict[str, Loss]:
    """By name; each takes the net, (images, texts, weights) and the group."""
    shared = {"grad_reduce": grad_reduce, "impl": impl}

    def clip(reduction: str, weighted: bool) -> Loss:
        return lambda net, data, group: clip_loss(
            *net(data), net.scale, weight=data[2] if weighted else None, group=group, reduction=reduction, **shared
        )

    def siglip(reduction: str, weighted: bool) -> Loss:
        return lambda net, data, group: siglip_loss(
            *net(data), net.scale, net.bias, weight=data[2] if weighted else None, group=group, reduction=reduction,
            **shared,
        )  # fmt: skip

    def among_keys(reduction: str) -> Loss:
        return lambda net, data, group: info_nce(
            *net(data), temperature=net.scale / 10, weight=data[2], group=group, reduction=reduction, **shared
        )

    def mean_of(loss: Loss) -> Loss:
        def by_rows(net: Net, data: tuple[Tensor, ...], group: dist.ProcessGroup | None) -> Tensor:
            rows = loss(net, data, group)
            return distributed.global_mean(rows.mean(0) if rows.dim() == 2 else rows, data[2], group, grad_reduce)

        return by_rows

    return {
        "clip": clip("mean", weighted=False),
        "weighted clip": clip("mean", weighted=True),
        "sum of clip": clip("sum", weighted=True),
        "rows of clip": mean_of(clip("none", weighted=False)),
        "siglip": siglip("mean", weighted=False),
        "weighted siglip": siglip("mean", weighted=True),
        "sum of siglip": siglip("sum", weighted=True),
        "rows of siglip": mean_of(siglip("none", weighted=False)),
        "info_nce": among_keys("mean"),
        "rows of info_nce": mean_of(among_keys("none")),
    }


def step(loss: Loss, data: tuple[Tensor, ...], group: dist.ProcessGroup | None) -> tuple[Tensor, Net, Tensor]:
    """Value (squared, so that the upstream gradient is not 1), the net with gradients, gradient of the weights."""
    net, weight = Net(), data[2].clone().requires_grad_()
    value = loss(net, (*data[:2], weight), group).square()
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
                assert (found.grad is None) == (wanted.grad is None)
                if found.grad is not None and wanted.grad is not None:
                    error = (found.grad * factor - wanted.grad).norm() / wanted.grad.norm()
                    assert error < 1e-11, f"{name}, {grad_reduce}, {tuple(found.shape)}: {error}"
            share = joined_dweight.split(SIZES[world_size])[rank] * (world_size if grad_reduce == "mean" else 1)
            torch.testing.assert_close(dweight, share, rtol=1e-10, atol=1e-12)


def compiled(rank: int, world_size: int, impl: str) -> None:
    group = distributed.world()
    mine = tuple(t.split(SIZES[world_size])[rank] for t in samples(world_size))
    for name in ("weighted clip", "weighted siglip", "info_nce"):
        loss = losses(impl, "mean")[name]
        torch._dynamo.reset()
        value, net, _ = step(torch.compile(loss, fullgraph=True, backend="aot_eager"), mine, group)
        expected, eager, _ = step(loss, mine, group)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(net.weight.grad, eager.weight.grad)


def refused(rank: int, world_size: int) -> None:
    z = torch.randn(SIZES[world_size][rank], 3, dtype=torch.float64, requires_grad=True)
    for loss in (clip_loss, lambda *args, **options: siglip_loss(*args, -1.0, **options)):
        value = loss(z, z, 2.0, group=distributed.world())
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            torch.autograd.grad(value, z, create_graph=True)
        with pytest.raises(RuntimeError, match=r"does not work inside torch\.func"):
            torch.func.grad(lambda a, loss=loss: loss(a, a, 2.0, group=distributed.world()))(z.detach())


def everything(rank: int, world_size: int, impls: list[str]) -> None:
    for impl in impls:
        equal_to_one_rank(rank, world_size, impl)
    if world_size == 2:
        compiled(rank, world_size, impls[0])
    refused(rank, world_size)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_equal_one_rank_with_the_joined_batch(world_size: int, tmp_path: Path) -> None:
    impls = sorted((set(usable("clip_loss")) & set(usable("siglip_loss"))) - {"triton"})
    run_ranks(everything, world_size, tmp_path, impls)
