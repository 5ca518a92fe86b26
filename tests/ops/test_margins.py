"""The margins themselves: values and slopes, and AdaFace and CurricularFace written out as in their papers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import adaface, arcface, cosface, curricularface
from ssl_fast.ops.margins import Margin, margined
from tests.ops.margin_cases import samples

OP = "margin_softmax"
RULES = [Margin(m2=0.5), Margin(m2=0.5, monotone=True), Margin(m3=0.35), Margin(1.3, 0.2, 0.1), Margin(0.9, 0.4)]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_slope_is_the_derivative(rule: Margin) -> None:
    cosine = torch.linspace(-0.999, 0.999, 201, dtype=torch.float64).requires_grad_()
    phi, slope = margined(cosine, rule)
    torch.testing.assert_close(torch.autograd.grad(phi.sum(), cosine)[0], slope)
    angle = rule.m1 * cosine.acos() + rule.m2
    inside = angle < math.pi
    torch.testing.assert_close(phi[inside], (angle.cos() - rule.m3)[inside])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_at_the_ends_are_those_of_the_angles_0_and_pi(dtype: torch.dtype) -> None:
    cosine = torch.tensor([1.0, -1.0], dtype=dtype).requires_grad_()
    for rule, at_0, at_pi in (
        (Margin(m2=0.5), math.cos(0.5), -math.cos(0.5)),
        (Margin(m3=0.35), 0.65, -1.35),
        (Margin(1.3, 0.2, 0.1), math.cos(0.2) - 0.1, math.cos(1.3 * math.pi + 0.2) - 0.1),
        (Margin(m2=0.5, monotone=True), math.cos(0.5), -1 - 0.5 * math.sin(0.5)),
    ):
        phi, slope = margined(cosine, rule)
        torch.testing.assert_close(phi, torch.tensor([at_0, at_pi], dtype=dtype))
        torch.testing.assert_close(torch.autograd.grad(phi.sum(), cosine)[0], slope)
        assert slope.isfinite().all()


def test_a_sample_on_its_centre_and_one_opposite(impl: str, device: str) -> None:
    x = torch.tensor([[3.0, 0.0], [-3.0, 0.0]], device=device).requires_grad_()
    weight, labels = torch.eye(2, device=device).requires_grad_(), torch.zeros(2, dtype=torch.int64, device=device)
    rows = arcface(x, weight, labels, scale=64.0, reduction="none", impl=impl)
    # phi = cos(0.5) and cos(pi + 0.5), the other class at cosine 0
    wanted = [math.log1p(math.exp(-64 * math.cos(0.5))), 64 * math.cos(0.5)]
    torch.testing.assert_close(rows.tolist(), wanted, rtol=1e-6, atol=1e-25)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(rows.sum(), (x, weight)))


def test_a_monotone_margin_never_rises_with_the_angle() -> None:
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    assert (margined(cosine, Margin(m2=0.5, monotone=True))[0].diff() > 0).all()
    assert (margined(cosine, Margin(m2=0.5))[0].diff() < 0).any()


def test_margins_per_row_are_those_of_each_row_and_clipped() -> None:
    cosine = torch.tensor([0.3, 1.0, -1.0, 0.3], dtype=torch.float64).requires_grad_()
    rows = torch.tensor([[0.5, -0.4, 0.4, -0.4], [0.1, 0.0, 0.2, 0.0]], dtype=torch.float64)
    phi, slope = margined(cosine, Margin(), rows)
    angle = torch.tensor([0.3], dtype=torch.float64).acos().item()
    end = math.cos(1e-3)
    expected = [math.cos(angle + 0.5) - 0.1, end, -end - 0.2, math.cos(angle - 0.4)]
    torch.testing.assert_close(phi, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(torch.autograd.grad(phi.sum(), cosine)[0], slope)
    assert slope[1] == slope[2] == 0


def test_straight_through_has_the_value_of_the_margin_and_the_slope_of_none(impl: str, device: str) -> None:
    x, weight, labels = (t.detach().to(device) for t in samples(12, 20, 6))
    x = x.float().requires_grad_()
    exact = arcface(x, weight.float(), labels, scale=8.0, impl=impl)
    through = arcface(x, weight.float(), labels, scale=8.0, margin_grad="straight_through", impl=impl)
    assert torch.equal(exact, through)
    cosine = (F.normalize(x) @ F.normalize(weight.float()).T) * 8
    own = F.one_hot(labels, 20).bool()
    shifted = cosine + torch.where(own, ((cosine / 8).acos() + 0.5).cos() * 8 - cosine, 0).detach()
    wanted = torch.autograd.grad(F.cross_entropy(shifted, labels), x)[0]
    found = torch.autograd.grad(through, x)[0]
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-6)
    assert (torch.autograd.grad(exact, x)[0] - found).norm() > 0.05 * found.norm()


def test_nearest_of_the_centres_counts(impl: str, device: str) -> None:
    x, weight, labels = (t.detach().to(device) for t in samples(12, 20, 6, centres=3))
    x, weight = x.float(), weight.float().requires_grad_()
    value = cosface(x, weight, labels, impl=impl)
    value.backward()
    nearest = torch.einsum("nd,csd->ncs", F.normalize(x), F.normalize(weight, dim=2)).max(2)
    logits = 64 * (nearest.values - 0.35 * F.one_hot(labels, 20))
    torch.testing.assert_close(value, F.cross_entropy(logits, labels))
    assert weight.grad is not None
    idle = ~F.one_hot(nearest.indices, 3).bool().any(0)
    assert idle.any() and not weight.grad[idle].any() and weight.grad[~idle].any()


def literal_adaface(x: Tensor, weight: Tensor, labels: Tensor, mean: float, std: float) -> Tensor:
    """Kim et al. 2022, Eq. 12-14, with arccosines and logits of all classes."""
    norms = x.detach().norm(dim=1)
    q = ((norms - mean) / ((std + 1e-3) / 0.333)).clamp(-1, 1)[:, None]
    angles = (F.normalize(x) @ F.normalize(weight).T).acos()
    own = F.one_hot(labels, len(weight)).bool()
    margin = (angles - 0.4 * q).clamp(1e-3, math.pi - 1e-3).cos() - (0.4 * q + 0.4)
    return F.cross_entropy(64 * torch.where(own, margin, angles.cos()), labels)


def literal_curricularface(x: Tensor, weight: Tensor, labels: Tensor, t: float) -> Tensor:
    """Huang et al. 2020, Eq. 5-7, with arccosines and logits of all classes."""
    angles = (F.normalize(x) @ F.normalize(weight).T).acos()
    own = F.one_hot(labels, len(weight)).bool()
    positive = (angles[own] + 0.5).cos()[:, None]
    easy = torch.where(angles[own] + 0.5 < math.pi, positive[:, 0], angles[own].cos() - 0.5 * math.sin(0.5))[:, None]
    cosine = angles.cos()
    negative = torch.where(positive - cosine >= 0, cosine, cosine * (t + cosine))
    return F.cross_entropy(64 * torch.where(own, easy, negative), labels)


@pytest.mark.parametrize("alignment", [-0.98, 0.2, 0.7, 0.95])
def test_papers_written_out(alignment: float, impl: str) -> None:
    if impl == "triton":
        pytest.skip("the Triton kernels have no float64")
    x, weight, labels = samples(30, 60, 8, alignment=alignment)
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (1.2, 0.3))
    t = torch.tensor(0.4, dtype=torch.float64)
    pairs = (
        (adaface(x, weight, labels, norm_mean=mean, norm_std=std, impl=impl), literal_adaface, (1.2, 0.3)),
        (curricularface(x, weight, labels, hardness=t, impl=impl), literal_curricularface, (0.4,)),
    )
    for value, literal, numbers in pairs:
        expected = literal(x, weight, labels, *numbers)  # type: ignore[operator]
        torch.testing.assert_close(value, expected)
        found, wanted = (torch.autograd.grad(v, (x, weight)) for v in (value, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_pytorch_metric_learning_agrees(impl: str) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    if impl == "triton":
        pytest.skip("the Triton kernels have no float64")
    x, weight, labels = samples(30, 60, 8, centres=3, alignment=0.4)
    one = weight.detach()[:, 0].contiguous()
    for module, value, classes in (
        (losses.ArcFaceLoss, arcface(x, one, labels, margin=0.5, monotone=True, impl=impl), one),
        (losses.CosFaceLoss, cosface(x, one, labels, impl=impl), one),
        (losses.SubCenterArcFaceLoss, arcface(x, weight, labels, margin=0.5, monotone=True, impl=impl), weight),
    ):
        degrees = 0.35 if module is losses.CosFaceLoss else math.degrees(0.5)
        peer = module(num_classes=60, embedding_size=8, margin=degrees, scale=64)
        peer.W.data = classes.detach().reshape(-1, 8).T.clone()
        expected = peer(x, labels)
        torch.testing.assert_close(value, expected.double(), rtol=1e-6, atol=1e-6)
        found, wanted = (torch.autograd.grad(v, x)[0] for v in (value, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
