"""Images in a `.npz` file: x_train, y_train, x_test, y_test, and class names in `classes` if wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.dataset import ArrayDataset, Labels
from ssl_fast.data.npz import Members, open_npz
from ssl_fast.data.splits import split_rows


class Arrays(ArrayDataset):
    """`x_*` are uint8 [N, H, W, C] or grey [N, H, W]; `y_*`, integers [N], may be absent, and so may the test arrays.

    Members stored without compression (`np.savez`) stay on disk, memory-mapped, unless a split takes a part of them.
    """

    @dataclass
    class Config:
        """Where the file is, and how it is split.

        Args:
            path: the .npz file.
            val_fraction: share of x_train held out as "val", seeded and stratified; 0 for none.
            fold, num_folds: cross-validation instead: "val" is fold `fold` of x_train, "train" the others.
            limit, limit_test: keep so many training, test images, the first after a seeded shuffle; 0 keeps all.
            split_seed: seed of the hold-out, the folds and the limits.
        """

        name: str = "arrays"
        path: str = ""
        val_fraction: float = 0.0
        fold: int = 0
        num_folds: int = 0
        limit: int = 0
        limit_test: int = 0
        split_seed: int = 0

    def __init__(self, config: Any, split: str) -> None:
        members = open_npz(Path(config.path), "data.path")
        images, labels = _columns(members, "test" if split == "test" else "train")
        rows = split_rows(config, split, labels, len(images))
        if not len(rows):
            raise ValueError(f"data.path: no images in the split {split!r} of {config.path}")
        if len(rows) < len(images):
            images, labels = images[rows], None if labels is None else labels[rows]
        normalisation = None if split == "train" else _train_normalisation(config)
        classes = [str(name) for name in members["classes"].tolist()] if "classes" in members else []
        super().__init__(images, labels, classes, normalisation)

    @staticmethod
    def splits(config: Any) -> tuple[str, ...]:
        """The splits of the file with this config."""
        test = "x_test" in open_npz(Path(config.path), "data.path")
        val = config.val_fraction > 0 or config.num_folds > 0
        return ("train", *(["val"] if val else []), *(["test"] if test else []))


def _train_normalisation(config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    train = Arrays(config, "train")
    return train.mean, train.std


def _columns(
    members: Members,
    part: str,
) -> tuple[NDArray[np.uint8], Labels | None]:  # [N, H, W, C], [N]
    images = members.get(f"x_{part}")
    if images is None:
        raise ValueError(f"data.path: expected an array x_{part}, the file has {', '.join(sorted(members)) or 'none'}")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape[1:]:
        expected = "expected uint8 [N, H, W, C] or [N, H, W]"
        raise ValueError(f"data.path: x_{part}: {expected}, got {images.dtype} {list(images.shape)}")
    images = images[..., None] if images.ndim == 3 else images
    labels = members.get(f"y_{part}")
    if labels is None:
        return images, None
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or (len(labels) and labels.min() < 0):
        expected = f"expected {len(images)} class numbers from 0 up"
        raise ValueError(f"data.path: y_{part}: {expected}, got {labels.dtype} {list(labels.shape)}")
    return images, np.asarray(labels, dtype=np.int64)
