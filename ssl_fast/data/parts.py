"""Named samples to splits: folders train/, val/ and test/ where there are any, else one pool that is divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.splits import Rows, hold_out, limited, split_rows

PARTS = ("train", "val", "test")


@dataclass
class PartsConfig:
    """How a pool of samples is divided.

    Args:
        val_fraction, test_fraction: shares held out where no folder, shard or column says so, seeded and stratified by
            single labels.
        fold, num_folds: cross-validation instead of val_fraction: "val" is fold `fold`, "train" the others.
        limit, limit_test: keep so many training, test images, the first after a seeded shuffle; 0 keeps all.
        split_seed: seed of the hold-outs, the folds and the limits.
    """

    val_fraction: float = 0.0
    test_fraction: float = 0.0
    fold: int = 0
    num_folds: int = 0
    limit: int = 0
    limit_test: int = 0
    split_seed: int = 0


def part_rows(names: Sequence[str]) -> dict[str, Rows]:
    """The samples inside train/, val/ and test/, or all of them as "train"."""
    found = {part: np.array([i for i, name in enumerate(names) if name.startswith(f"{part}/")], int) for part in PARTS}
    found = {part: rows for part, rows in found.items() if len(rows)}
    return found if "train" in found else {"train": np.arange(len(names))}


def splits_of(config: Any, parts: Sequence[str]) -> tuple[str, ...]:
    """The splits of a set with these folders: without test, val is the test set."""
    val = "val" in parts or config.val_fraction > 0 or config.num_folds > 0
    test = "test" in parts or ("val" in parts if "train" in parts else config.test_fraction > 0)
    return ("train", *(["val"] if val else []), *(["test"] if test else []), "all")


def chosen_rows(
    config: Any,
    split: str,
    parts: dict[str, Rows],
    labels: NDArray[np.int64] | None,  # [N] of all samples
    num: int,
) -> Rows:
    """The samples of a split, as numbers into all `num` of them."""
    if split == "all":
        return np.arange(num)
    if split == "test" and ("test" in parts or "val" in parts):
        chosen = parts.get("test", parts.get("val", np.arange(0)))
        return chosen[limited(np.arange(len(chosen)), config.limit_test, config.split_seed)]
    if split in parts and split != "train":
        return parts[split]
    pool = parts["train"]
    classes = None if labels is None else labels[pool]
    fraction = 0.0 if len(parts) > 1 else config.test_fraction
    kept, out = hold_out(len(pool), classes, fraction, config.split_seed)
    if split == "test":
        return pool[limited(out, config.limit_test, config.split_seed)]
    return pool[kept[split_rows(config, split, None if classes is None else classes[kept], len(kept))]]


def folder_classes(
    names: Sequence[str],
    parts: dict[str, NDArray[np.int64]],
) -> tuple[NDArray[np.int64] | None, list[str]]:  # [N], -1 for a folder that the training set has not got
    """Class numbers and names: the folders that the training samples lie in, if they are two or more."""
    depth = 1 if names[parts["train"][0]].startswith("train/") else 0
    folders = [name.split("/", depth + 1)[depth] if name.count("/") > depth else "" for name in names]
    classes = sorted({folders[i] for i in parts["train"]})
    if "" in classes or len(classes) < 2:
        return None, []
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers.get(folder, -1) for folder in folders], dtype=np.int64), classes
