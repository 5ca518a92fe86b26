"""Pairs of an image and a text, listed in a table: JSON lines, CSV, TSV or parquet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_fast.data.captions import texts_of
from ssl_fast.data.encoded import EncodedConfig, FileDataset
from ssl_fast.data.parts import PARTS, chosen_rows, splits_of
from ssl_fast.data.scan import look_at_files
from ssl_fast.data.splits import Rows
from ssl_fast.data.tables import read_table

_NO_TEXT = "no caption"


class ImageText(FileDataset):
    """A sample is an image, with the captions of all its rows; in the order in which images are first named.

    The headers of all files are looked at when the table is first opened (verdicts are cached): a missing file, or one
    that is no image, is left out and recorded in the quarantine file, and so is an image without a caption.
    """

    @dataclass
    class Config(EncodedConfig):
        """Where the table is, and what its columns are called; and how images are read: `EncodedConfig`.

        Args:
            path: the table: `.jsonl` (an object a line; its caption may be a list of them), `.tsv`, `.parquet`, else
                CSV (UTF-8, with a header line).
            root: folder that relative paths start at; "" for the table's.
            column: of the paths.
            caption_column: of the captions.
            split_column: of the words train, val and test; "" makes every image "train", less the shares below.
        """

        name: str = "image_text"
        path: str = ""
        root: str = ""
        column: str = "image"
        caption_column: str = "text"
        split_column: str = ""

    def __init__(self, config: Any, split: str) -> None:
        captions, splits = _read(config)
        self.root = Path(config.root or Path(config.path).parent)
        self._prepare(config, config.path)
        names = [name for name, texts in captions.items() if texts]
        if not names:
            raise ValueError(f"data.caption_column: no image of {config.path} has a caption")
        found = look_at_files(self.root, names, self.limits, False, self.channels, f"data.path: {config.path}")
        self._record(found.refused + [(name, _NO_TEXT) for name, texts in captions.items() if not texts], len(captions))
        rows = _rows(found.names, splits, split, config)
        if not len(rows):
            raise ValueError(f"data.path: no images of the split {split!r} of {config.path} can be read")
        self.names, self.sizes = [found.names[i] for i in rows], found.sizes[rows]
        self.captions = [captions[name] for name in self.names]
        self._finish(config, f"{found.fingerprint} {self.captions}")

    @staticmethod
    def splits(config: Any) -> tuple[str, ...]:
        """The splits that the table names, or that its images are divided into."""
        if not config.split_column:
            return splits_of(config, [])
        named = set(_read(config)[1].values())
        return (*(name for name in PARTS if name in named), "all")


def _read(config: Any) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The captions of each image by its path, and the word of its split where a column has them."""
    optional = [config.split_column] if config.split_column else []
    columns = {"column": [config.column], "caption_column": [config.caption_column], "split_column": optional}
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for row in read_table(config.path, columns):
        name = row[config.column]
        if not name:
            continue
        captions.setdefault(name, []).extend(texts_of(row[config.caption_column]))
        if config.split_column:
            word = row[config.split_column]
            if word not in PARTS:
                raise ValueError(f"data.split_column: expected train, val or test in {config.path}, got {word!r}")
            if splits.setdefault(name, word) != word:
                raise ValueError(f"data.split_column: {name} is in two splits of {config.path}")
    if not captions:
        raise ValueError(f"data.path: {config.path} lists no images")
    return captions, splits


def _rows(names: list[str], splits: dict[str, str], split: str, config: Any) -> Rows:
    if config.split_column:
        return np.array([i for i, name in enumerate(names) if split in ("all", splits[name])], dtype=np.int64)
    return chosen_rows(config, split, {"train": np.arange(len(names))}, None, len(names))
