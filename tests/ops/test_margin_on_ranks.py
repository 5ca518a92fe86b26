"""Classes and samples spread over gloo ranks, against one rank with all of both."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_fast import MarginHead, arcface, distributed
from tests.ops.conftest import usable
from tests.ops.margin_cases import LOSSES, samples
from tests.ranks import run_ranks

ROWS, CLASSES = (5, 3), (4, 9)
EXACT = {"rtol": 1e-10, "atol": 1e-12}


class Net(nn.Module):
    """What every rank has alike: a layer and the scale."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Parameter(torch.randn(6, 7, generator=generator, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(9.0, dtype=torch.float64))


def step(name, net, weight, x, labels, group, grad_reduce, reduction, **options) -> Tensor:  # type: ignore[no-untyped-def]
    """Value, squared so that the upstream gradient is not 1; gradients are left in net and weight."""
    options |= {"scale": net.scale, "group": group, "grad_reduce": grad_reduce, "reduction": reduction}
    value = LOSSES[name][0](x @ net.layer, weight, labels, **options)
    if reduction == "none":
        kept = (labels != -1).double()
        value = distributed.global_mean(value, kept, group, grad_reduce)
    value.square().backward()
    return value.detach()


def equal_to_one_rank(rank: int, world_size: int, impls: list[str]) -> None:
    group = distributed.world()
    x, _, labels = samples(sum(ROWS), sum(CLASSES), 6)
    x = x.detach()
    weight = samples(1, sum(CLASSES), 7, centres=2, seed=5)[1].detach()
    labels[1] = -1
    mine = (x.split(ROWS)[rank], labels.split(ROWS)[rank])
    cases = [(n, g, r) for n in LOSSES for g in ("mean", "sum") for r in ("mean", "sum", "none")]
    for impl in impls:
        for name, grad_reduce, reduction in cases:
            for normalize in (True, False) if name == "arcface" else (True,):
                options = {"impl": impl, "normalize": normalize}
                scaled = weight if normalize else nn.functional.normalize(weight, dim=2) * 0.2
                nets = Net(), Net()
                part, whole = scaled.split(CLASSES)[rank].clone().requires_grad_(), scaled.clone().requires_grad_()
                if not normalize:
                    for net in nets:
                        net.layer.data *= 0.1
                value = step(name, nets[0], part, *mine, group, grad_reduce, reduction, **options)
                expected = step(name, nets[1], whole, x, labels, None, grad_reduce, reduction, **options)
                torch.testing.assert_close(value, expected, rtol=1e-12, atol=0, msg=f"{name}, {options}")
                distributed.average_gradients(nets[0].parameters(), group)
                factor = 1 if grad_reduce == "mean" else world_size  # the average, made a sum
                for found, wanted in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
                    assert found.grad is not None and wanted.grad is not None
                    torch.testing.assert_close(found.grad * factor, wanted.grad, **EXACT)
                assert part.grad is not None and whole.grad is not None
                torch.testing.assert_close(part.grad, whole.grad.split(CLASSES)[rank], **EXACT)


def heads(rank: int, world_size: int) -> None:
    group = distributed.world()
    x, _, labels = samples(sum(ROWS), 11, 6)
    x = x.detach().float()
    for margin in ("arcface", "adaface", "curricularface"):
        torch.manual_seed(3)
        shared = MarginHead(6, 11, loss=margin, group=group, momentum=0.5)
        torch.manual_seed(3)
        alone = MarginHead(6, 11, loss=margin, momentum=0.5)
        assert len(shared.weight) == (5, 6)[rank]
        optimizers = [torch.optim.SGD(h.parameters(), lr=0.1) for h in (shared, alone)]
        for _ in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            found, wanted = shared(x.split(ROWS)[rank], labels.split(ROWS)[rank]), alone(x, labels)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
            found.backward()
            wanted.backward()
            for optimizer in optimizers:
                optimizer.step()
        # The state_dict does not tell how many ranks there were, and goes both ways.
        state, expected = shared.state_dict(), alone.state_dict()
        assert state.keys() == expected.keys()
        for name in state:
            torch.testing.assert_close(state[name], expected[name], rtol=1e-4, atol=1e-6)
        shared.load_state_dict(expected)
        assert torch.equal(shared.weight, alone.weight[shared.classes.start : shared.classes.stop])


def sampled(rank: int, world_size: int) -> None:
    """Every rank draws from its own classes; the value is the same on all."""
    group, (x, _, labels) = distributed.world(), samples(sum(ROWS), 40, 6)
    torch.manual_seed(4)
    head = MarginHead(6, 40, group=group, sample_rate=0.5, generator=torch.Generator().manual_seed(rank))
    value = head(x.detach().float().split(ROWS)[rank], labels.split(ROWS)[rank])
    value.backward()
    values = distributed.all_gather_rows(value[None], group)
    assert values[0] == values[1] and value.isfinite()
    assert head.weight.grad is not None and head.weight.grad.any(1).sum() == 10


def refused(rank: int, world_size: int) -> None:
    x, labels = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2])
    weight = torch.randn(5, 4, dtype=torch.float64)
    for reduction in ("mean", "none"):
        value = arcface(x, weight, labels, group=distributed.world(), reduction=reduction).sum()
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"do not work inside torch\.func"):
        torch.func.grad(lambda a: arcface(a, weight, labels, group=distributed.world()))(x.detach())


def everything(rank: int, world_size: int, impls: list[str]) -> None:
    equal_to_one_rank(rank, world_size, impls)
    heads(rank, world_size)
    sampled(rank, world_size)
    refused(rank, world_size)


def test_ranks_equal_one_rank_with_all_samples_and_classes(tmp_path: Path) -> None:
    run_ranks(everything, 2, tmp_path, sorted(set(usable("margin_softmax")) - {"triton"}))


def traced_equals_eager(rank: int, world_size: int, impl: str, name: str, reduction: str) -> None:
    group = distributed.world()
    x, _, labels = samples(sum(ROWS), sum(CLASSES), 6)
    weight = samples(1, sum(CLASSES), 6, seed=5)[1]
    mine = [t.detach().split(n)[rank].clone() for t, n in ((x, ROWS), (weight, CLASSES))]
    labels = labels.split(ROWS)[rank]

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return LOSSES[name][0](x, weight, labels, group=group, reduction=reduction, impl=impl)

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in mine]
        value = function(*leaves)
        value.sum().backward()
        found.append([value.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(found[1], found[0], **EXACT)
    with pytest.raises(Exception, match="sample no classes under torch"):
        sampled = lambda x, weight: arcface(x, weight, labels, group=group, sample_rate=0.5)  # noqa: E731
        torch.compile(sampled, fullgraph=True, backend="aot_eager")(*mine)


@pytest.mark.parametrize(("name", "reduction"), [("arcface", "mean"), ("adaface", "none")])
def test_under_compile_ranks_give_what_they_give_in_eager(tmp_path: Path, name: str, reduction: str) -> None:
    run_ranks(traced_equals_eager, 2, tmp_path, usable("margin_softmax")[0], name, reduction)
