"""CIFAR-10, downloaded by torchvision into `data.root` when it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.splits import split_rows

# Of the 50,000 training images.
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class CIFAR10(ArrayDataset):
    """60,000 colour images of 32 x 32 pixels in ten classes: 50,000 to train on, 10,000 to test.

    Reference: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """

    @dataclass
    class Config:
        """Where the files are, and how the training images are split.

        Args:
            root: folder of the files.
            download: fetch them when they are absent.
            val_fraction: share of the training images held out as "val", seeded and stratified; 0 for none.
            fold, num_folds: cross-validation instead: "val" is fold `fold` of the training images.
            limit, limit_test: keep so many training, test images, the first after a seeded shuffle; 0 keeps all.
            split_seed: seed of the hold-out, the folds and the limits.
        """

        name: str = "cifar10"
        root: str = "data"
        download: bool = True
        val_fraction: float = 0.0
        fold: int = 0
        num_folds: int = 0
        limit: int = 0
        limit_test: int = 0
        split_seed: int = 0

    def __init__(self, config: Any, split: str) -> None:
        source = _source(config, train=split != "test")
        labels = np.asarray(source.targets, dtype=np.int64)
        rows = split_rows(config, split, labels, len(labels))
        super().__init__(np.asarray(source.data)[rows], labels[rows], source.classes, (_MEAN, _STD))

    @staticmethod
    def splits(config: Any) -> tuple[str, ...]:
        """The splits with this config."""
        return ("train", "val", "test") if config.val_fraction > 0 or config.num_folds > 0 else ("train", "test")


def _source(config: Any, train: bool) -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise RuntimeError("data=cifar10 needs torchvision: pip install ssl_fast[recipes]") from error
    try:
        return datasets.CIFAR10(config.root, train=train, download=config.download)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSError, a missing or wrong file is RuntimeError
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"data.root: no CIFAR-10 in {config.root!r}, and no download ({first})") from error
