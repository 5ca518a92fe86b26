"""Texts of images: where they come from, which one a step sees, and the rows of tokens that a batch carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.philox import uniforms

if TYPE_CHECKING:
    from ssl_fast.data.dataset import Dataset

Tokenize = Callable[[Sequence[str]], NDArray[np.int64]]  # n texts -> [n, L]
Captions = Sequence[Sequence[str]]  # of each sample, one text or more

FROM_CLASSES = "classes"
# Sentences about a picture of one thing; the class's name stands for {}.
TEMPLATES = (
    "a photo of a {}",
    "a picture of one {}",
    "this is a {}",
    "a small, blurred photo of a {}",
    "a photo of a {} from close by",
    "a photo of a {} far away",
    "a {} seen from the side",
    "an image that shows a {}",
)
_PURPOSE = 0xFFFFFE  # of the random numbers that choose captions; views have theirs from 0 up


@dataclass
class CaptionsConfig:
    """What a data set without texts of its own is described by.

    Args:
        captions: "" for the data set's own; "classes" for sentences with each sample's class in them; or a file of
            such sentences, one a line, {} for the class.
    """

    captions: str = ""


def read_templates(setting: str, path: str) -> tuple[str, ...]:
    """The sentences of a file, one a line; those that we bring along where `path` is "".

    Args:
        setting: what the user called the path, for the errors.

    Raises:
        ValueError: no such file, no sentence in it, or one without a place for the class.
    """
    if not path:
        return TEMPLATES
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{setting}: {path} cannot be read as a file of templates: {error}") from error
    templates = tuple(line.strip() for line in lines if line.strip())
    strange = [line for line in templates if line.count("{}") != 1]
    if not templates or strange:
        got = repr(strange[0]) if strange else "an empty file"
        raise ValueError(f"{setting}: {path}: expected lines with one {{}} each for the class, got {got}")
    return templates


def describe(name: str, templates: Sequence[str]) -> tuple[str, ...]:
    """A class's name in each template; underscores become spaces."""
    return tuple(template.replace("{}", name.replace("_", " ")) for template in templates)


def add_captions(dataset: Dataset, source: str, tokenize: Tokenize | None) -> None:
    """Gives a data set captions (`CaptionsConfig.captions`), and what makes tokens of them in its batches.

    Raises:
        ValueError: captions are to be made from classes and there is not one a sample, or tokens of captions that are
            not there.
    """
    if source:
        if dataset.labels is None or not dataset.has_classes:
            raise ValueError("data.captions: expected a data set with one class a sample, got one without")
        if unknown := int((dataset.labels < 0).sum()):
            raise ValueError(f"data.captions: expected a class for every sample, got {unknown} without")
        templates = read_templates("data.captions", "" if source == FROM_CLASSES else source)
        described = [describe(name, templates) for name in dataset.classes]
        dataset.captions = [described[label] for label in dataset.labels.tolist()]
    if tokenize is not None and dataset.captions is None:
        raise ValueError(
            "data: expected a data set with captions for this method (image_text; tar_shards with data.caption=txt; "
            "hf_dataset with data.caption_column; or classes, with data.captions=classes), got one without"
        )
    dataset.tokenize = tokenize


def texts_of(value: object) -> list[str]:
    """The texts in what a file holds: a text, or a list of them; empty ones are left out."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for item in values if item is not None and (text := str(item).strip())]


def chosen(
    captions: Captions,
    index: NDArray[np.int64],  # [n] sample numbers
    seed: int,
    epoch: int,
) -> list[str]:
    """One caption of each sample: a function of (seed, epoch, sample), uniform over the sample's captions."""
    numbers = uniforms(index, (epoch, _PURPOSE), seed, 1)[:, 0]
    texts = [captions[i] for i in index.tolist()]
    return [several[int(number * len(several))] for several, number in zip(texts, numbers.tolist(), strict=True)]
