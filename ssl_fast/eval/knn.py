"""Weighted k-nearest-neighbour classification of frozen features.

The class score of a query is a sum over its k nearest training features under the cosine:

    score_c = sum_{i in kNN(query), y_i = c} exp(cos(query, h_i) / T)

Letters: Q queries, N training samples, F feature, C classes, k neighbours, T temperature.
The similarity matrix [Q, N] is never formed (`knn_topk`), nor are the scores [Q, C] of all queries at once.

Reference: Wu et al. 2018, arXiv:1805.01978, Section 3.4; Caron et al. 2021, arXiv:2104.14294 (k = 20, T = 0.07).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_fast.ops.knn_topk import knn_topk

WORKSPACE = 64 << 20  # bytes: the largest tile of the matrix of class scores


@dataclass
class KNNConfig:
    """How neighbours vote. DINO evaluates with k = 20 and T = 0.07; Wu et al. with k = 200 and T = 0.07."""

    k: int = 20
    temperature: float = 0.07

    def check(self, num_train: int) -> None:
        """Raises ValueError unless so many training samples can vote."""
        if not 1 <= self.k <= num_train:
            raise ValueError(f"knn.k: expected 1 to {num_train} (the training samples), got {self.k}")
        if self.temperature <= 0:
            raise ValueError(f"knn.temperature: expected a positive number, got {self.temperature}")


def nearest_neighbours(
    train_h: Tensor,  # [N, F]
    query_h: Tensor,  # [Q, F]
    k: int,
) -> tuple[Tensor, Tensor]:
    """The k training rows of largest cosine for each query, the most similar first.

    Equal similarities are ordered by training index, so the answer is a function of the features alone.

    Args:
        train_h: [N, F] features, any scale.
        query_h: [Q, F] features on the same device.
        k: neighbours, 1 <= k <= N.

    Returns:
        similarity [Q, k] fp32, index [Q, k] int64 into the training rows.

    Raises:
        ValueError: k out of range, feature sizes differ, or a feature is not finite.
    """
    check_features(train_h, query_h)
    if not 1 <= k <= len(train_h):
        raise ValueError(f"k: expected 1 <= k <= {len(train_h)} (the number of training features), got {k}")
    return knn_topk(query_h.float(), train_h.float(), k)


def knn_predict(
    train_h: Tensor,  # [N, F]
    train_y: Tensor,  # [N] int64
    query_h: Tensor,  # [Q, F]
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_ranked: int = 1,
    workspace: int = WORKSPACE,
) -> Tensor:
    """The classes of each query, the best first: [Q, num_ranked] int64.

    Equal scores are ordered by class number. Labels are class numbers from 0.

    Raises:
        ValueError: labels missing or not one per training feature, k or temperature out of range.

    Example:
        >>> h = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> knn_predict(h, torch.tensor([4, 4, 2]), torch.tensor([[1.0, 0.2]]), k=2).tolist()
        [[4]]
    """
    if temperature <= 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    labels = check_labels("train_y", train_y, len(train_h)).to(train_h.device)
    similarity, index = nearest_neighbours(train_h, query_h, k)
    num_classes = int(labels.max()) + 1
    if not 1 <= num_ranked <= num_classes:
        raise ValueError(f"num_ranked: expected 1 to {num_classes} (the number of classes), got {num_ranked}")
    tile = max(1, workspace // 8 // num_classes)
    ranked = [
        _vote(s, labels[i], temperature, num_classes)[:, :num_ranked]
        for s, i in zip(torch.split(similarity, tile), torch.split(index, tile), strict=True)
    ]
    return torch.cat(ranked) if ranked else index.new_empty(0, num_ranked)


def knn_accuracy(
    train_h: Tensor,  # [N, F]
    train_y: Tensor | None,  # [N] int64
    test_h: Tensor,  # [Q, F]
    test_y: Tensor | None,  # [Q] int64
    k: int = 20,
    temperature: float = 0.07,
    *,
    layer: str = "backbone feature h",
    workspace: int = WORKSPACE,
) -> dict[str, Any]:
    """Accuracy of weighted kNN with its protocol: what was voted, by whom, on which features.

    Returns:
        {"top1", "top5" (only with more than five classes), "protocol": {...}}; accuracies in [0, 1].

    Raises:
        ValueError: as `knn_predict`; also when `test_y` is missing or there is nothing to test.
    """
    train_y = check_labels("train_y", train_y, len(train_h))
    test_y = check_labels("test_y", test_y, len(test_h)).to(test_h.device)
    num_classes = int(train_y.max()) + 1
    ranked = knn_predict(
        train_h,
        train_y,
        test_h,
        k=k,
        temperature=temperature,
        num_ranked=min(5, num_classes),
        workspace=workspace,
    )
    hit = ranked == test_y[:, None]
    scores: dict[str, Any] = {"top1": hit[:, 0].double().mean().item()}
    if num_classes > 5:
        scores["top5"] = hit.any(dim=1).double().mean().item()
    scores["protocol"] = knn_protocol(KNNConfig(k, temperature), layer) | {
        "num_train": len(train_h),
        "num_test": len(test_h),
        "num_classes": num_classes,
    }
    return scores


def knn_protocol(config: KNNConfig, layer: str) -> dict[str, Any]:
    """The choices that a kNN score depends on, in words and numbers."""
    return {
        "classifier": "weighted kNN, exp(cosine / temperature), arXiv:1805.01978",
        **asdict(config),
        "feature_layer": layer,
        "normalisation": "each feature to unit length; not centred",
    }


def _vote(
    similarity: Tensor,  # [q, k]
    labels: Tensor,  # [q, k] int64
    temperature: float,
    num_classes: int,
) -> Tensor:
    """Classes [q, C] by descending score, smaller class first in ties."""
    similarity = similarity.double()
    weight = ((similarity - similarity[:, :1]) / temperature).exp()  # the row's factor changes no rank, avoids overflow
    score = weight.new_zeros(len(weight), num_classes)
    for j in range(weight.shape[1]):  # one neighbour at a time: no two additions meet, so the sum has a fixed order
        score.scatter_add_(1, labels[:, j : j + 1], weight[:, j : j + 1])
    return score.argsort(dim=1, descending=True, stable=True)


def check_features(
    train_h: Tensor,  # [N, F]
    query_h: Tensor,  # [Q, F]
) -> None:
    """Raises ValueError unless both are finite [rows, F] of one F."""
    for name, h in (("train_h", train_h), ("query_h", query_h)):
        if h.ndim != 2:
            raise ValueError(f"{name}: expected features [N, F], got shape {tuple(h.shape)}")
        broken = len(h) - int(h.isfinite().all(dim=1).sum())
        if broken:
            raise ValueError(f"{name}: expected finite features, got {broken} rows with NaN or infinity")
    if train_h.shape[1] != query_h.shape[1]:
        raise ValueError(f"query_h: expected {train_h.shape[1]} features a row as in train_h, got {query_h.shape[1]}")


def check_labels(
    name: str,
    labels: Tensor | None,  # [N] int64
    expected: int,
) -> Tensor:
    """The labels, if they are `expected` class numbers from 0; else ValueError about the argument `name`."""
    if labels is None:
        raise ValueError(f"{name}: expected a label for each sample, got None (the data set has no labels)")
    if labels.shape != (expected,) or labels.is_floating_point():
        raise ValueError(
            f"{name}: expected {expected} class numbers, got shape {tuple(labels.shape)} of {labels.dtype}"
        )
    if not expected:
        raise ValueError(f"{name}: expected at least one sample, got none")
    if int(labels.min()) < 0:
        raise ValueError(f"{name}: expected class numbers from 0, got {int(labels.min())}")
    return labels
