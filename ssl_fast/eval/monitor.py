"""What pretraining is watched by: kNN and linear accuracy on a sample of the data, and figures that show a collapse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_fast.data.dataset import Dataset, Image
from ssl_fast.data.loader import LoaderConfig
from ssl_fast.data.views import View
from ssl_fast.eval.features import Features, extract_features
from ssl_fast.eval.knn import knn_accuracy


@dataclass
class MonitorConfig:
    """How much is looked at, how neighbours vote, and whether a linear classifier is fitted."""

    k: int = 20
    temperature: float = 0.07
    probe: bool = True  # linear classifier by ridge regression
    max_train: int = (
        10000  # training samples that vote and that the classifier is fitted to, a fixed random choice; 0 for all
    )
    max_test: int = 2000  # samples that are classified; 0 for all
    batch_size: int = 256
    precision: str = "fp32"  # fp32 | bf16


def knn_monitor(
    train_set: Dataset,
    test_set: Dataset,
    view: View,
    config: MonitorConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    loader: LoaderConfig | None = None,
) -> Callable[[nn.Module], dict[str, float]]:
    """A function of the backbone that the trainer calls now and then.

    Its answer holds `feature_std` and `rankme`, and when both sets have labels `knn_top1` and `linear_top1`. The
    samples are chosen once, so the answers of one run can be compared. Hand it the validation split, not the test
    split, if settings are chosen by what it says.

    Raises:
        ValueError: fewer training samples than k.
    """
    config = config or MonitorConfig()
    train_part, test_part = Subset.sample(train_set, config.max_train), Subset.sample(test_set, config.max_test)
    labelled = train_part.has_classes and test_part.has_classes
    if labelled and config.k > (voters := int((np.asarray(train_part.labels) >= 0).sum())):
        raise ValueError(f"monitor.k: expected at most {voters} (the monitor's training samples), got {config.k}")

    def monitor(backbone: nn.Module) -> dict[str, float]:
        def features(part: Subset) -> Features:
            return extract_features(
                backbone,
                part,
                view,
                batch_size=config.batch_size,
                device=device,
                precision=config.precision,
                loader=loader,
            )

        train = features(train_part)
        h = train.h.to(device)
        values = {"feature_std": feature_std(h), "rankme": rankme(h)}
        if labelled and train.h.isfinite().all():
            train, test = train.labelled(), features(test_part).labelled()
            assert train.labels is not None and test.labels is not None
            x, y, q, t = (part.to(device) for part in (train.h, train.labels, test.h, test.labels))
            scores = knn_accuracy(x, y, q, t, config.k, config.temperature)
            values["knn_top1"] = float(scores["top1"])
            if config.probe:
                values["linear_top1"] = ridge_accuracy(x, y, q, t)
        return values

    return monitor


RIDGE = 1e-2  # added to the variances of standardised features, which are 1


def ridge_accuracy(
    train_h: Tensor,  # [N, F]
    train_y: Tensor,  # [N] int64
    test_h: Tensor,  # [Q, F]
    test_y: Tensor,  # [Q] int64
) -> float:
    """Share of the test samples that a linear classifier gets right: least squares on one-hot targets, ridge 0.01.

        min over W, b of  mean_i | W s_i + b - onehot(y_i) |^2 + 0.01 |W|^2,   s = standardised h

    It has a closed form, so that it costs a small part of what extracting the features does; `linear_probe` is the
    measure to publish.

    Reference: Hastie, Tibshirani and Friedman 2009, "The Elements of Statistical Learning", Section 4.2.
    """
    mean, std = train_h.mean(0), train_h.std(0, correction=0)
    std = torch.where(std > 1e-6 * std.max(), std, torch.inf)  # a feature that never changes says nothing
    s, q = ((h - mean) / std for h in (train_h, test_h))
    targets = F.one_hot(train_y, int(train_y.max()) + 1).to(s.dtype)
    gram = (s.T @ s / len(s)).double()
    gram.diagonal().add_(RIDGE)
    cross = (s.T @ (targets - targets.mean(0)) / len(s)).double()
    weight = torch.linalg.solve(gram, cross).to(s.dtype)
    return float(((q @ weight + targets.mean(0)).argmax(1) == test_y).double().mean())


def feature_std(
    h: Tensor,  # [N, F]
) -> float:
    """Mean over the F dimensions of the standard deviation of unit-length features, times sqrt(F).

    0 when all images have one feature (collapse); 1 when directions are uniform on the sphere. Features that are never
    negative, such as those behind a ReLU, stay below 1.

    Reference: Chen & He 2021, arXiv:2011.10566, Section 4.1.
    """
    return float(F.normalize(h.double(), dim=1).std(0, correction=0).mean()) * math.sqrt(h.shape[1])


def rankme(
    h: Tensor,  # [N, F]
) -> float:
    """Effective rank: exp of the entropy of the singular values' shares; between 1 and min(N, F).

    Reference: Garrido et al. 2023, arXiv:2210.02885, Eq. 1 and 2 (epsilon 1e-7).
    """
    if not h.isfinite().all():
        return float("nan")
    rows = h.double()
    gram = rows.T @ rows if len(h) > h.shape[1] else rows @ rows.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny) + 1e-7
    return float((-(share * share.log()).sum()).exp())


class Subset(Dataset):
    """Some samples of a data set, as a data set."""

    def __init__(
        self,
        dataset: Dataset,
        index: NDArray[np.int64],  # [n] sample numbers, ascending
    ) -> None:
        self.dataset, self.index = dataset, index
        self.classes, self.channels = dataset.classes, dataset.channels
        self.mean, self.std, self.videos = dataset.mean, dataset.std, dataset.videos
        self.labels = None if dataset.labels is None else np.asarray(dataset.labels)[index]
        self.arrays = None if dataset.arrays is None else dataset.arrays[index]
        self.names = None if dataset.names is None else [dataset.names[i] for i in index]

    @classmethod
    def sample(cls, dataset: Dataset, limit: int) -> Subset:
        """At most `limit` samples (0 for all), always the same ones, in the data set's order."""
        size = len(dataset)
        if not 0 < limit < size:
            return cls(dataset, np.arange(size))
        return cls(dataset, np.sort(np.random.default_rng(0).choice(size, limit, replace=False)))

    def __len__(self) -> int:
        return len(self.index)

    def read(self, i: int) -> Image:
        """Image i of the subset, uint8 [H, W, C]."""
        return self.dataset.read(int(self.index[i]))

    def fingerprint(self) -> str:
        """The whole set's fingerprint and which part this is."""
        return f"{self.dataset.fingerprint()}[{len(self)}]"

    def fetch(
        self,
        index: NDArray[np.int64],  # [n] numbers in the subset
        *wanted: Any,
    ) -> tuple[NDArray[np.uint8] | list[Image], NDArray[np.int64]]:
        """As the whole set's; where a broken file was replaced by one outside the subset, a fetched one stands in."""
        images, read = self.dataset.fetch(self.index[index], *wanted)
        inside = np.isin(read, self.index)
        if inside.all():
            return images, np.searchsorted(self.index, read)
        if not inside.any():
            raise RuntimeError("monitor: none of a whole batch of images can be decoded")
        source = np.where(inside, np.arange(len(read)), np.argmax(inside))
        return [images[i] for i in source], np.searchsorted(self.index, read[source])
