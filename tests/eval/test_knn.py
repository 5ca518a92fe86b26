"""Weighted kNN against scikit-learn, faiss and numbers worked by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.eval.knn import knn_accuracy, knn_predict, nearest_neighbours


def clusters(num: int, features: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping classes: h [num, features], y [num]."""
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (num,), generator=generator)
    return centres[y] + 1.5 * torch.randn(num, features, generator=generator), y


def on_circle(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize("k", [1, 20, 57])
def test_agrees_with_scikit_learn(k: int) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    train_h, train_y = clusters(700, 16, 7, seed=0)
    test_h, _ = clusters(300, 16, 7, seed=1)
    oracle = neighbors.KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train_h.double().numpy(), train_y.numpy())
    expected = oracle.predict(test_h.double().numpy())
    assert (knn_predict(train_h, train_y, test_h, k=k)[:, 0].numpy() == expected).all()


def test_neighbours_agree_with_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    train_h, _ = clusters(2000, 24, 5, seed=2)
    query_h, _ = clusters(100, 24, 5, seed=3)
    index = faiss.IndexFlatIP(24)
    index.add(F.normalize(train_h, dim=1).numpy())
    value, where = index.search(F.normalize(query_h, dim=1).numpy(), 10)
    similarity, found = nearest_neighbours(train_h, query_h, 10)
    assert (found.numpy() == where).all()
    torch.testing.assert_close(similarity, torch.from_numpy(value), rtol=0, atol=2e-6)


def test_vote_worked_by_hand() -> None:
    # Query at 0 degrees. Class 0 at 10 degrees; class 1 at 20 and 25 degrees, all within k = 3; class 2 far away.
    train_h, train_y = on_circle(10, 20, 25, 180), torch.tensor([0, 1, 1, 2])
    query = on_circle(0)

    def margin(temperature: float) -> float:
        c = [math.cos(math.radians(a)) for a in (10, 20, 25)]
        return math.exp(c[0] / temperature) - math.exp(c[1] / temperature) - math.exp(c[2] / temperature)

    assert margin(0.05) > 0 > margin(0.2)  # the nearest one wins when the vote is sharp, the pair when it is flat
    assert knn_predict(train_h, train_y, query, k=3, temperature=0.05).item() == 0
    assert knn_predict(train_h, train_y, query, k=3, temperature=0.2).item() == 1


def test_answers_do_not_depend_on_the_workspace() -> None:
    train_h, train_y = clusters(900, 16, 7, seed=4)
    test_h, test_y = clusters(611, 16, 7, seed=5)
    scores = knn_accuracy(train_h, train_y, test_h, test_y)
    for workspace in (1000, 4096, 100_000):
        assert knn_accuracy(train_h, train_y, test_h, test_y, workspace=workspace) == scores


def test_equal_similarities_go_to_the_smaller_index() -> None:
    train_h = on_circle(90, 0, 0, 90, 0, 0)
    similarity, index = nearest_neighbours(train_h, on_circle(0, 90), 3)
    assert index.tolist() == [[1, 2, 4], [0, 3, 1]]
    torch.testing.assert_close(similarity, torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]))


def test_equal_scores_go_to_the_smaller_class() -> None:
    train_h, train_y = on_circle(0, 0, 0, 0), torch.tensor([3, 1, 1, 3])
    assert knn_predict(train_h, train_y, on_circle(0), k=4, num_ranked=4).tolist() == [[1, 3, 0, 2]]


def test_collapsed_features_still_give_an_answer() -> None:
    train_h, train_y = torch.ones(50, 8), torch.arange(50) % 5
    assert nearest_neighbours(train_h, torch.ones(3, 8), 4)[1].tolist() == [[0, 1, 2, 3]] * 3
    assert knn_predict(torch.zeros(50, 8), train_y, torch.zeros(3, 8), k=4).tolist() == [[0]] * 3


def test_a_sharp_temperature_does_not_overflow() -> None:
    train_h, train_y = on_circle(0, 5, 90), torch.tensor([1, 0, 0])
    assert knn_predict(train_h, train_y, on_circle(1), k=3, temperature=1e-4).item() == 1


def test_features_count_by_direction_alone() -> None:
    train_h, train_y = clusters(200, 8, 3, seed=6)
    test_h, _ = clusters(50, 8, 3, seed=7)
    scale = torch.logspace(-3, 3, 200)[:, None]
    assert torch.equal(knn_predict(train_h * scale, train_y, test_h * 7), knn_predict(train_h, train_y, test_h))


def test_accuracy_carries_its_protocol() -> None:
    train_h, train_y = clusters(300, 16, 7, seed=0)
    test_h, test_y = clusters(100, 16, 7, seed=1)
    scores = knn_accuracy(train_h, train_y, test_h, test_y, k=5, temperature=0.2, layer="projector 1")
    expected = (knn_predict(train_h, train_y, test_h, k=5, temperature=0.2)[:, 0] == test_y).double().mean().item()
    assert scores["top1"] == pytest.approx(expected)
    assert scores["top1"] < scores["top5"] < 1
    wanted = {"k": 5, "temperature": 0.2, "feature_layer": "projector 1", "num_train": 300, "num_test": 100}
    assert wanted.items() <= scores["protocol"].items()
    assert "unit length" in scores["protocol"]["normalisation"]
    assert "top5" not in knn_accuracy(train_h, train_y.clamp_max(4), test_h, test_y)


def test_a_test_class_without_training_samples_counts_as_wrong() -> None:
    scores = knn_accuracy(on_circle(0, 90), torch.tensor([0, 1]), on_circle(0, 90), torch.tensor([0, 5]), k=1)
    assert scores["top1"] == 0.5


def test_errors_name_the_argument() -> None:
    h, y = torch.eye(4), torch.arange(4)
    with pytest.raises(ValueError, match=r"k: expected 1 <= k <= 4 .* got 5"):
        knn_accuracy(h, y, h, y, k=5)
    with pytest.raises(ValueError, match=r"train_y: .* got None"):
        knn_accuracy(h, None, h, y, k=1)
    with pytest.raises(ValueError, match=r"test_y: .* got None"):
        knn_accuracy(h, y, h, None, k=1)
    with pytest.raises(ValueError, match=r"train_y: expected 4 class numbers"):
        knn_accuracy(h, y[:3], h, y, k=1)
    with pytest.raises(ValueError, match=r"train_y: expected class numbers from 0, got -1"):
        knn_accuracy(h, y - 1, h, y, k=1)
    with pytest.raises(ValueError, match=r"temperature: expected a positive number, got 0"):
        knn_accuracy(h, y, h, y, k=1, temperature=0)
    with pytest.raises(ValueError, match=r"query_h: expected finite features, got 1 rows"):
        knn_accuracy(h, y, h / torch.tensor([[1.0], [1], [0], [1]]), y, k=1)
    with pytest.raises(ValueError, match=r"query_h: expected 4 features a row"):
        knn_predict(h, y, torch.ones(2, 3), k=1)
    with pytest.raises(ValueError, match=r"test_y: expected at least one sample"):
        knn_accuracy(h, y, h[:0], y[:0], k=1)


def test_no_queries_give_no_answers() -> None:
    assert knn_predict(torch.eye(3), torch.arange(3), torch.empty(0, 3), k=2).shape == (0, 1)
