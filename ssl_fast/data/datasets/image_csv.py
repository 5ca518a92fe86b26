"""Image files listed in a CSV table: a column of paths, and columns of labels and splits if there are any."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.cache import cache_folder
from ssl_fast.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from ssl_fast.data.datasets.image_folder import ImageFolder
from ssl_fast.data.decode import Limits, image_size, read_bytes
from ssl_fast.data.quarantine import Quarantine

_log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
_GREY_MEAN, _GREY_STD = (0.459,), (0.226,)  # as image_folder's
Row = dict[str, str]


class ImageCSV(ImageFolder):
    """The files of a table's rows, in the table's order; reading and replacing broken ones as `ImageFolder` does.

    The headers of all files are looked at when the table is opened: a missing file, or one that is no image, is left
    out and recorded in the quarantine file.
    """

    @dataclass
    class Config:
        """Where the table is, and what its columns are called.

        Args:
            path: the CSV file (UTF-8, with a header line).
            root: folder that relative paths start at; "" for the table's.
            column: of the paths.
            label_column: of the class names; "" for no labels.
            split_column: of the words train, val and test; "" makes every row "train".
            color: three channels; False makes one.
            max_pixels, max_bytes: larger files are refused.
            quarantine: file that refused files are recorded in; "" for one in the cache folder.
        """

        name: str = "image_csv"
        path: str = ""
        root: str = ""
        column: str = "path"
        label_column: str = ""
        split_column: str = ""
        color: bool = True
        max_pixels: int = 64_000_000
        max_bytes: int = 64 << 20
        quarantine: str = ""

    def __init__(self, config: Any, split: str) -> None:
        table = read_table(config)
        self.root, self.limits = (
            Path(config.root or Path(config.path).parent),
            Limits(config.max_bytes, config.max_pixels),
        )
        rows = [row for row in table if split == "all" or _split_of(row, config) == split]
        sizes, refused = self._look([row[config.column] for row in rows])
        self.quarantine = Quarantine(_quarantine_path(config))
        if self.quarantine.add(list(refused.items())):
            where = self.quarantine.path
            _log.warning("%d of %d image files cannot be used and are left out: %s", len(refused), len(rows), where)
        rows = [row for row in rows if row[config.column] not in refused]
        if not rows:
            raise ValueError(f"data.path: no images of the split {split!r} of {config.path} can be read")
        self.names = [row[config.column] for row in rows]
        self.sizes = np.array([sizes[name] for name in self.names], dtype=np.int64)
        self._label(rows, table, config)
        self.channels = 3 if config.color else 1
        self.mean, self.std = (IMAGENET_MEAN, IMAGENET_STD) if config.color else (_GREY_MEAN, _GREY_STD)
        self._digest = hashlib.sha256(f"{self.names} {sizes} {self.classes} {config.color}".encode(errors="replace"))

    @staticmethod
    def splits(config: Any) -> tuple[str, ...]:
        """The splits that the table names."""
        found = {_split_of(row, config) for row in read_table(config)}
        return (*(name for name in SPLITS if name in found), "all")

    def _look(self, names: list[str]) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        """{name: (H, W)} of the files that are images, {name: reason} of the others."""

        def look(name: str) -> tuple[int, int] | str:
            try:
                return image_size(read_bytes(self.root / name, self.limits), self.limits)
            except UnreadableError as refusal:
                return str(refusal)

        unique = sorted(set(names))
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = dict(zip(unique, pool.map(look, unique), strict=True))
        sizes = {name: size for name, size in found.items() if not isinstance(size, str)}
        return sizes, {name: reason for name, reason in found.items() if isinstance(reason, str)}

    def _label(self, rows: list[Row], table: list[Row], config: Any) -> None:
        """Classes are those of the whole table, so that every split numbers them alike."""
        if not config.label_column:
            self.labels, self.classes = None, []
            return
        self.classes = sorted({row[config.label_column] for row in table})
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = np.array([numbers[row[config.label_column]] for row in rows], dtype=np.int64)


def read_table(config: Any) -> list[Row]:
    """The rows of the table that have a path.

    Raises:
        ValueError: no such file, no CSV, or a column is missing.
    """
    if not config.path:
        raise ValueError("data.path: expected a CSV file")
    try:
        with open(config.path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            rows = [row for row in reader if row.get(config.column)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"data.path: {config.path} cannot be read as CSV: {error}") from error
    for setting in ("column", "label_column", "split_column"):
        wanted = getattr(config, setting)
        if wanted and wanted not in columns:
            raise ValueError(f"data.{setting}: {config.path} has no column {wanted!r} (columns: {', '.join(columns)})")
    if not rows:
        raise ValueError(f"data.path: {config.path} lists no images")
    return rows


def _split_of(row: Row, config: Any) -> str:
    split = row[config.split_column] if config.split_column else "train"
    if split not in SPLITS:
        raise ValueError(f"data.split_column: expected train, val or test in {config.path}, got {split!r}")
    return split


def _quarantine_path(config: Any) -> Path:
    name = hashlib.sha256(str(Path(config.path).resolve()).encode(errors="replace")).hexdigest()[:16]
    return Path(config.quarantine) if config.quarantine else cache_folder() / name / "quarantine.jsonl"
