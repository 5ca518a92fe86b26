"""Which samples belong to which split: seeded, stratified by class where there are labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.philox import permutation

Rows = NDArray[np.int64]

# The epoch word of the random numbers that split a set, so that they are not those of any epoch's order.
_SPLIT, _LIMIT = 0xFFFFFFFF, 0xFFFFFFFE


def hold_out(
    num: int,
    labels: NDArray[np.int64] | None,  # [num]
    fraction: float,
    seed: int,
) -> tuple[Rows, Rows]:
    """(kept, held out), both ascending; `fraction` of each class is held out."""
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"val_fraction, test_fraction: expected a number in [0, 1), got {fraction}")
    dealt = _dealt(num, labels, seed)
    step = np.floor(np.arange(1, num + 1) * fraction)
    out = np.diff(step, prepend=0.0) > 0
    return np.sort(dealt[~out]), np.sort(dealt[out])


def fold_rows(
    num: int,
    labels: NDArray[np.int64] | None,  # [num]
    fold: int,
    num_folds: int,
    seed: int,
) -> tuple[Rows, Rows]:
    """(the other folds, fold `fold` of `num_folds`), both ascending."""
    if num_folds < 2 or not 0 <= fold < num_folds:
        raise ValueError(f"fold, num_folds: expected 0 <= fold < num_folds and num_folds >= 2, got {fold}, {num_folds}")
    if labels is None:
        raise ValueError("num_folds: folds need labels, and this data set has none")
    dealt = _dealt(num, labels, seed)
    out = np.arange(num) % num_folds == fold
    return np.sort(dealt[~out]), np.sort(dealt[out])


def limited(rows: Rows, limit: int, seed: int) -> Rows:
    """The first `limit` of `rows` after a seeded shuffle, ascending; 0 keeps all."""
    if limit < 0:
        raise ValueError(f"limit: expected 0 (all) or a positive number, got {limit}")
    if limit == 0 or limit >= len(rows):
        return rows
    return np.sort(rows[permutation(len(rows), seed, _LIMIT)[:limit]])


def _dealt(
    num: int,
    labels: NDArray[np.int64] | None,  # [num]
    seed: int,
) -> Rows:  # [num]
    """A random order, class after class: dealing every k-th card then takes equally from each class."""
    order = permutation(num, seed, _SPLIT)
    return order if labels is None else order[np.argsort(labels[order], kind="stable")]


def split_rows(
    config: Any,  # a data set's Config: val_fraction, fold, num_folds, limit, limit_test, split_seed
    split: str,
    labels: NDArray[np.int64] | None,  # [num] of the training pool; of the test set for "test"
    num: int,
) -> Rows:
    """The rows of a split: "train" and "val" are cut from one pool, "test" has its own."""
    if split == "test":
        return limited(np.arange(num), config.limit_test, config.split_seed)
    if config.num_folds:
        kept, out = fold_rows(num, labels, config.fold, config.num_folds, config.split_seed)
    else:
        kept, out = hold_out(num, labels, config.val_fraction, config.split_seed)
    return out if split == "val" else limited(kept, config.limit, config.split_seed)
