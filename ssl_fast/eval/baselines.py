"""Learned features beside what any representation must beat: raw pixels, and the network before its first step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ssl_fast.data.dataset import Dataset
from ssl_fast.data.loader import LoaderConfig
from ssl_fast.data.views import View
from ssl_fast.eval.features import Features, extract_features, raw_pixels
from ssl_fast.eval.knn import KNNConfig, knn_accuracy

KINDS = ("learned", "random_init", "raw_pixels")
Pair = tuple[Features, Features]  # of the training set and of the evaluated split


def feature_pair(
    backbone: nn.Module,
    sets: tuple[Dataset, Dataset],
    view: View,
    loader: LoaderConfig,
) -> Pair:
    """A backbone's features of both sets, made where the backbone is."""
    train, test = (extract_features(backbone, data, view, loader=loader) for data in sets)
    return train, test


def raw_pair(sets: tuple[Dataset, Dataset]) -> Pair | None:
    """Raw pixels are a baseline only where all images have one size, as arrays have."""
    return (raw_pixels(sets[0]), raw_pixels(sets[1])) if sets[0].arrays is not None else None


def knn_scores(kinds: Mapping[str, Pair | None], knn: KNNConfig, has_classes: bool) -> dict[str, float | None]:
    """`knn_top1` of the learned features and of both baselines; None where samples have not one class each."""
    scores: dict[str, float | None] = {}
    for kind in KINDS:
        key, found = "knn_top1" if kind == "learned" else f"knn_top1_{kind}", kinds.get(kind)
        scores[key] = None
        if found and has_classes:
            train, test = (part.labelled() for part in found)
            scores[key] = knn_accuracy(train.h, train.labels, test.h, test.labels, knn.k, knn.temperature)["top1"]
    return scores
