"""insightface's head against its arithmetic written out: normalise, multiply, margin under no_grad, cross-entropy."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.dropin.insightface import CombinedMarginLoss, PartialFC_V2
from ssl_fast.ops.partial_fc import sample_classes
from tests.dropin.same import close, rows, same, value_and_gradients
from tests.ranks import run_ranks

DTYPES = [torch.float64, torch.float32]
MARGINS = {"arcface": (1.0, 0.5, 0.0), "cosface": (1.0, 0.0, 0.4), "m1 and m2 ignored": (1.3, 0.2, 0.2)}


def literal_margin(cosine: Tensor, labels: Tensor, s: float, m1: float, m2: float, m3: float) -> Tensor:
    """What `losses.py` there does, step by step: the angles replace the cosines in place, unseen by autograd."""
    kept = torch.where(labels != -1)[0]
    logits = cosine.clone()
    if m1 == 1.0 and m3 == 0.0:
        with torch.no_grad():
            angles = logits.arccos()
            angles[kept, labels[kept]] += m2
            shift = angles.cos() - logits
        return (logits + shift) * s
    margin = torch.zeros_like(logits)
    margin[kept, labels[kept]] = m3
    return (logits - margin) * s


def literal_rows(x: Tensor, weight: Tensor, labels: Tensor, margins: tuple[float, ...], s: float) -> Tensor:
    cosine = (F.normalize(x) @ F.normalize(weight).T).clamp(-1, 1)
    return F.cross_entropy(literal_margin(cosine, labels, s, *margins), labels, reduction="none")


def literal_head(x: Tensor, weight: Tensor, labels: Tensor, margins: tuple[float, ...], s: float) -> Tensor:
    """Without the cut at -log 1e-30 of the value, which the gradient there does not know of."""
    return literal_rows(x, weight, labels, margins, s).mean()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", MARGINS)
def test_the_margin_on_logits(margin: str, dtype: torch.dtype) -> None:
    cosine = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.9 - 0.95
    labels = torch.tensor([0, 4, -1, 2, 2, -1])
    upstream = rows(6, 5, seed=1, dtype=dtype, grad=False)
    loss = CombinedMarginLoss(64.0, *MARGINS[margin])
    for shape in ((6,), (6, 1)):
        same(
            lambda c, s=shape: loss(c, labels.view(s)) * upstream,
            lambda c: literal_margin(c, labels, 64.0, *MARGINS[margin]) * upstream,
            [cosine.to(dtype).requires_grad_()],
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [4.0, 30.0, 64.0])
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize(("num_rows", "num_classes", "dim"), [(2, 3, 4), (9, 20, 8), (33, 7, 3)])
def test_the_head(num_rows: int, num_classes: int, dim: int, margin: str, scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = PartialFC_V2(CombinedMarginLoss(scale, *MARGINS[margin]), dim, num_classes).to(dtype)
    torch.manual_seed(0)
    assert torch.equal(head.weight, torch.normal(0, 0.01, (num_classes, dim)).to(dtype))
    labels = torch.arange(num_rows) * 5 % num_classes
    weight = head.weight.detach().clone().requires_grad_()
    same(
        lambda x: head(x, labels),
        lambda x: literal_head(x, weight, labels, MARGINS[margin], scale),
        [rows(num_rows, dim, seed=3, dtype=dtype)],
        ([head.weight], [weight]),
    )
    assert list(head.state_dict()) == ["weight"]


def test_labels_of_any_shape_stay_as_they_are() -> None:
    head = PartialFC_V2(CombinedMarginLoss(64, 1, 0.5, 0), 4, 5)
    x, labels = torch.randn(3, 4), torch.tensor([[0], [4], [2]], dtype=torch.int32)
    assert torch.equal(head(x, labels), head(x, torch.tensor([0, 4, 2])))
    assert labels.shape == (3, 1)


@pytest.mark.parametrize("margin", ["arcface", "cosface"])
def test_sampled_classes_are_those_of_the_batch_and_others(margin: str) -> None:
    head = PartialFC_V2(CombinedMarginLoss(30.0, *MARGINS[margin]), 4, 50, sample_rate=0.3).double()
    x, labels = rows(6, 4), torch.tensor([3, 40, 3, 11, 49, 0])
    torch.manual_seed(5)
    value, dx, dweight = value_and_gradients(lambda x: head(x, labels), [x], [head.weight])
    torch.manual_seed(5)
    kept, places = sample_classes(labels, 50, 0.3)
    assert len(kept) == 15 and set(labels.tolist()) <= set(kept.tolist())
    weight = head.weight.detach()[kept].requires_grad_()
    expected = value_and_gradients(lambda x: literal_head(x, weight, places, MARGINS[margin], 30.0), [x], [weight])
    for got, other in zip((value, dx, dweight[kept]), expected, strict=True):
        close(got, other, torch.float64)
    left_out = torch.ones(50, dtype=torch.bool)
    left_out[kept] = False
    assert not dweight[left_out].any()


def test_differences_that_are_stated() -> None:
    head = PartialFC_V2(CombinedMarginLoss(64.0, 1.0, 0.5, 0.0), 3, 3)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3))
    x, labels = torch.eye(3, requires_grad=True), torch.arange(3)
    value, gradient = value_and_gradients(lambda x: head(x, labels), [x])[:2]
    assert abs(value - literal_head(x, head.weight, labels, (1.0, 0.5, 0.0), 64.0)) <= 0.0015 * 64 * math.sin(0.5)
    assert gradient.isfinite().all()
    wrong = labels.roll(1)
    cut = literal_rows(x, head.weight, wrong, (1.0, 0.5, 0.0), 64.0).clamp_max(-math.log(1e-30)).mean()
    assert head(x, wrong).item() > 69.1 > cut.item()
    ignored = torch.tensor([-1, 1, 2])
    torch.testing.assert_close(head(x, ignored), head(x[1:], ignored[1:]))


def test_what_is_not_served_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="interclass_filtering_threshold"):
        CombinedMarginLoss(64, 1, 0.5, 0, interclass_filtering_threshold=0.2)
    with pytest.raises(ValueError, match="m1 = 1 and m3 = 0"):
        CombinedMarginLoss(64, 1.3, 0.2, 0)
    with pytest.raises(ValueError, match="margin_loss must be"):
        PartialFC_V2(lambda logits, labels: logits, 4, 5)  # type: ignore[arg-type]


def head_on_rank(rank: int, world_size: int, num_classes: int) -> None:
    """Against one rank with the joined batch and all classes."""
    for margin in MARGINS.values():
        torch.manual_seed(rank)
        head = PartialFC_V2(CombinedMarginLoss(20.0, *margin), 5, num_classes).double()
        shards = [None] * world_size
        torch.distributed.all_gather_object(shards, (head.class_start, head.num_local, head.weight.detach()))
        assert [s[0] for s in shards] == [sum(t[1] for t in shards[:r]) for r in range(world_size)]
        assert [s[1] for s in shards] == [len(range(r, num_classes, world_size)) for r in range(world_size)]
        x, labels = rows(4 * world_size, 5), torch.arange(4 * world_size) * 3 % num_classes
        mine = slice(4 * rank, 4 * rank + 4)
        local = x.detach()[mine].requires_grad_()
        value, dx, dweight = value_and_gradients(lambda x: head(x, labels[mine]), [local], [head.weight])  # noqa: B023
        whole = torch.cat([s[2] for s in shards]).requires_grad_()
        expected = value_and_gradients(lambda x: literal_head(x, whole, labels, margin, 20.0), [x], [whole])  # noqa: B023
        close(value, expected[0], torch.float64)
        close(dx, expected[1][mine] * world_size, torch.float64, "theirs multiplies the ranks' gradient")
        close(dweight, expected[2][head.class_start : head.class_start + head.num_local], torch.float64)


@pytest.mark.parametrize(("world_size", "num_classes"), [(2, 11), (3, 10)])
def test_classes_spread_over_ranks(tmp_path: Path, world_size: int, num_classes: int) -> None:
    run_ranks(head_on_rank, world_size, tmp_path, num_classes)
