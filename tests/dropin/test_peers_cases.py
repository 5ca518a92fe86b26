"""What the tests of pytorch-metric-learning and open_clip ask of their losses, asked of ours in our words.

A test's name begins with the project. Expected numbers are worked out here, row by row, from the definitions. Cases
that need a GPU there run on the CPU.
"""

import math
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.dropin import metric_learning, open_clip


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def every(*choices: Iterable[Any]) -> list[tuple[Any, ...]]:
    return list(product(*choices))


# pytorch-metric-learning: tests/losses/test_{arcface,cosface,subcenter_arcface,supcon,ntxent,self_supervised}_loss.py

DTYPES = {torch.float16: 1e-2, torch.float32: 1e-4, torch.float64: 1e-6}


def directions(degrees: list[float], dtype: torch.dtype) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack((angles.cos(), angles.sin()), 1).to(dtype).requires_grad_()


@pytest.mark.parametrize(
    ("name", "dtype"), every(["ArcFaceLoss", "CosFaceLoss", "SubCenterArcFaceLoss"], DTYPES), ids=str
)
def test_pml_margin_loss_of_directions(name: str, dtype: torch.dtype) -> None:
    """Cosines, the margin on the target, cross-entropy; and the logits of inference."""
    margin = 0.3 if name == "CosFaceLoss" else 30
    loss = getattr(metric_learning, name)(num_classes=10, embedding_size=2, margin=margin, scale=64)
    x = directions(list(range(0, 180, 7)), dtype)
    labels = torch.arange(len(x)) * 3 % 10
    value = loss(x, labels)
    value.backward()
    cosine = F.normalize(x.detach().double()) @ F.normalize(loss.W.detach().double(), dim=0)
    cosine = cosine.view(len(x), 10, -1).amax(2)
    inference, own = cosine * 64, cosine[torch.arange(len(x)), labels]
    theta = own.clamp(-1, 1).acos() + math.radians(margin)
    monotone = torch.where(theta <= math.pi, theta.cos(), own - math.radians(margin) * math.sin(math.radians(margin)))
    cosine[torch.arange(len(x)), labels] = own - margin if name == "CosFaceLoss" else monotone
    expected = F.cross_entropy(cosine * 64, labels)
    torch.testing.assert_close(value.double(), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])
    torch.testing.assert_close(loss.get_logits(x).double(), inference, rtol=DTYPES[dtype], atol=64 * DTYPES[dtype])
    assert x.grad is not None and loss.W.grad is not None


def test_pml_sub_center_outliers() -> None:
    """Samples on a centre's far side are outliers, those beside it are not."""
    loss = metric_learning.SubCenterArcFaceLoss(num_classes=2, embedding_size=2, sub_centers=2)
    with torch.no_grad():
        loss.W.copy_(directions([0, 90, 180, 270], torch.float32).T)
    x, labels = directions([1, 2, 3, 89, 181, 182, 300], torch.float32), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    outliers, centres = loss.get_outliers(x, labels)
    assert outliers.tolist() == [3, 6]
    torch.testing.assert_close(centres, loss.W.detach()[:, [0, 2]])


def pair_loss(name: str, x: Tensor, labels: Tensor, temperature: float) -> float:
    """The definitions, a pair at a time in Python."""
    s = (F.normalize(x.detach().double()) @ F.normalize(x.detach().double()).T / temperature).tolist()
    terms: list[list[float]] = []
    for a, row in enumerate(s):
        positives = [j for j in range(len(s)) if j != a and labels[j] == labels[a]]
        negatives = sum(math.exp(row[j]) for j in range(len(s)) if labels[j] != labels[a])
        everyone = negatives + sum(math.exp(row[j]) for j in positives)
        whole = [everyone if name == "SupConLoss" else negatives + math.exp(row[p]) for p in positives]
        terms.append([math.log(w) - row[p] for p, w in zip(positives, whole, strict=True)])
    if name == "SupConLoss":
        means = [sum(t) / len(t) for t in terms if t]
        return sum(means) / len(means)
    pairs = [t for row_terms in terms for t in row_terms]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize(
    ("name", "labels", "dtype"),
    every(["SupConLoss", "NTXentLoss"], [[0, 0, 1, 1, 2], [0, 0, 0, 1, 1], [0, 1, 0, 1, 2]], DTYPES),
    ids=str,
)
def test_pml_pair_loss_of_directions(name: str, labels: list[int], dtype: torch.dtype) -> None:
    x, classes = directions([0, 20, 40, 60, 80], dtype), torch.tensor(labels)
    loss = getattr(metric_learning, name)(temperature=0.1)(x, classes)
    loss.backward()
    assert loss.item() == pytest.approx(pair_loss(name, x, classes, 0.1), rel=DTYPES[dtype])


@pytest.mark.parametrize(
    ("name", "degrees", "labels", "dtype"),
    [
        (name, degrees, labels, dtype)
        for name, dtype in every(["SupConLoss", "NTXentLoss"], DTYPES)
        for degrees, labels in (([0], [0]), ([0, 10, 20], [0, 0, 0]), ([0, 40, 60], [1, 2, 3]))
    ],
    ids=str,
)
def test_pml_without_valid_pairs(name: str, degrees: list[float], labels: list[int], dtype: torch.dtype) -> None:
    x = directions(degrees, dtype)
    loss = getattr(metric_learning, name)(temperature=0.1)(x, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0 and x.grad is not None and not x.grad.any()


@pytest.mark.parametrize(("name", "dtype"), every(["SupConLoss", "NTXentLoss"], DTYPES), ids=str)
def test_pml_backward(name: str, dtype: torch.dtype) -> None:
    x = directions([0, 20, 40], dtype)
    getattr(metric_learning, name)(temperature=0.1)(x, torch.tensor([0, 0, 1])).backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()


@pytest.mark.parametrize("name", ["SupConLoss", "NTXentLoss"])
def test_pml_self_supervised_wrapper(name: str) -> None:
    """Their wrapper around our loss: two views, every sample a class of its own."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    x, y = draw(8, 4), draw(8, 4, seed=1)
    got = losses.SelfSupervisedLoss(getattr(metric_learning, name)())(x, y)
    torch.testing.assert_close(got, losses.SelfSupervisedLoss(getattr(losses, name)())(x, y))


# open_clip: its tests train through the losses (tests/test_training_simple.py); what train.py does with them


def model_out(bias: bool) -> dict[str, Tensor]:
    image, text = (F.normalize(draw(6, 8, seed=seed)).requires_grad_() for seed in (0, 1))
    numbers = {"logit_scale": torch.tensor(14.3, requires_grad=True)}
    numbers |= {"logit_bias": torch.tensor(-10.0, requires_grad=True)} if bias else {}
    return {"image_features": image, "text_features": text, **numbers}


@pytest.mark.parametrize(("name", "bias"), [("ClipLoss", False), ("ClipLoss", True), ("SigLipLoss", True)])
def test_open_clip_training_calls_by_keyword_and_sums_the_dictionary(name: str, bias: bool) -> None:
    out = model_out(bias)
    losses = getattr(open_clip, name)(rank=0, world_size=1)(**out, output_dict=True)
    sum(losses.values()).backward()
    assert list(losses) == ["contrastive_loss"] and all(t.grad is not None for t in out.values())


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_open_clip_learns_to_match(name: str) -> None:
    image, text = nn.Parameter(draw(6, 8)), nn.Parameter(draw(6, 8, seed=1))
    optimizer = torch.optim.Adam([image, text], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = getattr(open_clip, name)()(F.normalize(image), F.normalize(text), 10.0, -5.0)
        loss.backward()
        optimizer.step()
    assert (F.normalize(image) @ F.normalize(text).T).argmax(1).tolist() == list(range(6))


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_open_clip_accumulates_features_of_several_batches(name: str) -> None:
    """The cached features of the other batches have no gradient, those of this one have."""
    out, cached = model_out(True), F.normalize(draw(6, 8, seed=5))
    out["image_features"], this = torch.cat((cached, out["image_features"])), out["image_features"]
    out["text_features"] = torch.cat((cached, out["text_features"]))
    getattr(open_clip, name)()(**out).backward()
    assert this.grad is not None and this.grad.any()
