"""The data sets: one module each, the CLI value is the module's name. Adding one is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from ssl_fast.data.captions import Tokenize, add_captions
from ssl_fast.data.dataset import Dataset


def names() -> list[str]:
    """The known data sets."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def dataset_class(name: str) -> Any:
    """The class of a data set: nested dataclass `Config`, `splits(config)`, and the call (config, split).

    Raises:
        ValueError: no such data set.
    """
    if name not in names():
        raise ValueError(f"data: expected one of {', '.join(names())}, got {name!r}")
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Dataset) and value.__module__ == module.__name__
    )
    return found


def splits(config: Any) -> tuple[str, ...]:
    """The splits that `config` has: of "train", "val" and "test"."""
    found: tuple[str, ...] = dataset_class(config.name).splits(config)
    return found


def open_dataset(config: Any, split: str = "train", tokenize: Tokenize | None = None) -> Dataset:
    """Opens a split.

    Args:
        config: the data set's Config (or an OmegaConf node of that structure), with or without `CaptionsConfig`.
        split: "train", "val" or "test".
        tokenize: puts tokens of captions into the batches.

    Raises:
        ValueError: unknown set or split, files that are missing or not as expected, or tokens are wanted and there are
            no captions.
    """
    known = splits(config)
    if split not in known:
        hint = {"val": "; set val_fraction or num_folds", "test": "; set test_fraction"}.get(split, "")
        raise ValueError(f"split: {config.name} has {', '.join(known)} here, got {split!r}{hint}")
    dataset: Dataset = dataset_class(config.name)(config, split)
    add_captions(dataset, getattr(config, "captions", ""), tokenize)
    return dataset


def labelled_dataset(config: Any, split: str, whole: bool = False) -> Dataset:
    """`open_dataset`, of samples that have one class each; unless `whole`, that of some may be unknown (-1).

    Raises:
        ValueError: as there, or a split without classes.
    """
    dataset = open_dataset(config, split)
    if not dataset.has_classes:
        raise ValueError(f"data: expected one label a sample, and the {split} split of {config.name} has not")
    assert dataset.labels is not None
    if whole and (unknown := int((dataset.labels < 0).sum())):
        raise ValueError(f"data: expected a class for every sample of the {split} split, got {unknown} without")
    return dataset
