"""Collapse figures worked by hand, and what the monitor must leave alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ssl_fast.data.views import View
from ssl_fast.eval.monitor import RIDGE, MonitorConfig, Subset, feature_std, knn_monitor, rankme, ridge_accuracy

VIEW = View(size=8, crop="center", flip=0.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())


def test_feature_std_is_zero_collapsed_and_one_spread_evenly() -> None:
    assert feature_std(torch.ones(100, 16) * torch.rand(100, 1)) == pytest.approx(0, abs=1e-7)
    spread = torch.randn(20000, 16, generator=torch.Generator().manual_seed(0))
    assert feature_std(spread) == pytest.approx(1, abs=0.01)
    assert feature_std(torch.tensor([[3.0, 0.0], [0.0, 5.0]])) == pytest.approx(0.5 * math.sqrt(2))


def test_rankme_counts_equal_directions() -> None:
    for rank in (1, 3, 8):
        h = torch.zeros(50, 8)
        h[torch.arange(48), torch.arange(48) % rank] = 2.0
        assert rankme(h) == pytest.approx(rank, rel=1e-3)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(entropy), rel=1e-5)
    assert math.isnan(rankme(torch.full((3, 2), float("nan"))))


@pytest.mark.parametrize("shape", [(200, 16), (16, 200)])
def test_rankme_agrees_with_the_singular_values(shape: tuple[int, int]) -> None:
    h = torch.randn(shape, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.linspace(1, 0.01, shape[1]))
    singular = torch.linalg.svdvals(h.double())
    share = singular / singular.sum() + 1e-7
    assert rankme(h) == pytest.approx(torch.exp(-(share * share.log()).sum()).item(), rel=1e-5)


def classes(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes that overlap, in 12 dimensions of unlike scales, one of which never changes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (num,), generator=generator)
    centres = torch.randn(4, 12, generator=torch.Generator().manual_seed(9))
    h = (centres[y] + 1.5 * torch.randn(num, 12, generator=generator)) * torch.logspace(-2, 3, 12) + 7
    h[:, 5] = 3.0
    return h, y


def test_the_online_probe_is_ridge_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    (h, y), (q, target) = classes(400, 0), classes(300, 1)
    std = h.std(0, correction=0)
    std[5] = 1.0
    s, t = ((x - h.mean(0)) / std for x in (h, q))
    theirs = linear_model.RidgeClassifier(alpha=RIDGE * len(h)).fit(s.numpy(), y.numpy())
    found = ridge_accuracy(h, y, q, target)
    assert found == pytest.approx(theirs.score(t.numpy(), target.numpy()), abs=0.5 / len(q))
    assert 0.5 < found < 1
    assert ridge_accuracy(h, y, q + 1e9 * torch.eye(12)[5], target) == found  # the constant has no part in it


def test_the_online_probe_can_be_left_out(pictures: Any) -> None:
    monitor = knn_monitor(pictures(), pictures(seed=1), VIEW, MonitorConfig(k=5, probe=False))
    assert set(monitor(network())) == {"feature_std", "rankme", "knn_top1"}


def test_a_subset_is_always_the_same_one(pictures: Any) -> None:
    whole = pictures(num=40)
    part, again = Subset.sample(whole, 10), Subset.sample(whole, 10)
    assert len(part) == 10
    assert (part.index == again.index).all() and (np.diff(part.index) > 0).all()
    assert (part.read(3) == whole.read(int(part.index[3]))).all()
    assert (part.labels == whole.labels[part.index]).all()
    assert len(Subset.sample(whole, 0)) == len(Subset.sample(whole, 99)) == 40


def test_monitor_reports_accuracy_and_collapse(pictures: Any) -> None:
    monitor = knn_monitor(pictures(), pictures(seed=1), VIEW, MonitorConfig(k=5))
    values = monitor(network())
    assert values["knn_top1"] > 0.9 and values["linear_top1"] > 0.9  # bright against dark
    assert 0 < values["feature_std"] < 1 < values["rankme"]
    assert all(isinstance(value, float) for value in values.values())


def test_monitor_leaves_the_training_as_it_was(pictures: Any) -> None:
    backbone = network()
    backbone.train()
    backbone[1].eval()  # a frozen part
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    strides = [p.stride() for p in backbone.parameters()]
    generator = torch.get_rng_state()
    monitor = knn_monitor(pictures(), pictures(seed=1), VIEW, MonitorConfig(k=5))
    assert monitor(backbone) == monitor(backbone)
    assert torch.equal(generator, torch.get_rng_state())
    assert [m.training for m in backbone.modules()] == [True, True, False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert [p.stride() for p in backbone.parameters()] == strides


def test_without_labels_only_collapse_is_reported(pictures: Any) -> None:
    train, test = pictures(), pictures(seed=1)
    train.labels = None
    assert set(knn_monitor(train, test, VIEW)(network())) == {"feature_std", "rankme"}


def test_too_few_samples_for_k(pictures: Any) -> None:
    with pytest.raises(ValueError, match=r"k: expected at most 10 .* got 20"):
        knn_monitor(pictures(), pictures(), VIEW, MonitorConfig(max_train=10))


def test_a_subset_never_answers_with_a_sample_outside_it(pictures: Any) -> None:
    whole = pictures(num=40, broken=(5,))  # the set answers with sample 6 instead
    part = Subset(whole, np.array([2, 5, 9]))
    images, read = part.fetch(np.array([1, 2]))
    assert read.tolist() == [2, 2]
    assert (images[0] == whole.read(9)).all() and (images[1] == whole.read(9)).all()
    with pytest.raises(RuntimeError, match="none of a whole batch"):
        part.fetch(np.array([1]))
