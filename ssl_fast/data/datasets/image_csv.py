"""Image files listed in a table (CSV, TSV, parquet): a column of paths, and columns of labels and splits if any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_fast.data.dataset import Labels
from ssl_fast.data.encoded import EncodedConfig, FileDataset
from ssl_fast.data.parts import PARTS, chosen_rows, splits_of
from ssl_fast.data.scan import look_at_files
from ssl_fast.data.tables import Row, class_numbers, columns_of_classes, read_table, several_classes


class ImageCSV(FileDataset):
    """The files of a table's rows, in the table's order.

    The headers of all files are looked at when the table is first opened (verdicts are cached): a missing file, or one
    that is no image, is left out and recorded in the quarantine file.
    """

    @dataclass
    class Config(EncodedConfig):
        """Where the table is, and what its columns are called; and how images are read: `EncodedConfig`.

        Args:
            path: the table: `.tsv`, `.parquet`, else CSV (UTF-8, with a header line).
            root: folder that relative paths start at; "" for the table's.
            column: of the paths.
            label_column: of the class names, -1 for an empty cell; "" for no labels; several ("cat,dog") hold 0 or 1
                for a class each, and labels are then [N, C].
            label_separator: what stands between the classes of a cell ("|"): labels are [N, C] of 0 and 1.
            split_column: of the words train, val and test; "" makes every row "train", less the shares below.
        """

        name: str = "image_csv"
        path: str = ""
        root: str = ""
        column: str = "path"
        label_column: str = ""
        label_separator: str = ""
        split_column: str = ""

    def __init__(self, config: Any, split: str) -> None:
        table = _rows(config)
        self.root = Path(config.root or Path(config.path).parent)
        self._prepare(config, config.path)
        names = sorted({row[config.column] for row in table})
        found = look_at_files(self.root, names, self.limits, False, self.channels, f"data.path: {config.path}")
        self._record(found.refused, len(names))
        sizes = dict(zip(found.names, found.sizes, strict=True))
        labels, self.classes = _labels(table, config)  # of the whole table, so that every split numbers classes alike
        good = np.array([i for i, row in enumerate(table) if row[config.column] in sizes], dtype=np.int64)
        rows = good[_chosen([table[i] for i in good], split, None if labels is None else labels[good], config)]
        if not len(rows):
            raise ValueError(f"data.path: no images of the split {split!r} of {config.path} can be read")
        self.names = [table[i][config.column] for i in rows]
        self.sizes = np.array([sizes[name] for name in self.names], dtype=np.int64)
        self.labels = None if labels is None else labels[rows]
        self._finish(config, f"{found.fingerprint} {self.classes}")

    @staticmethod
    def splits(config: Any) -> tuple[str, ...]:
        """The splits that the table names, or that its rows are divided into."""
        if not config.split_column:
            return splits_of(config, [])
        found = {_split_of(row, config) for row in _rows(config)}
        return (*(name for name in PARTS if name in found), "all")


def _columns(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _rows(config: Any) -> list[Row]:
    """The rows of the table that have a path."""
    settings = {
        "column": [config.column],
        "label_column": _columns(config.label_column),
        "split_column": _columns(config.split_column),
    }
    rows = [row for row in read_table(config.path, settings) if row[config.column]]
    if not rows:
        raise ValueError(f"data.path: {config.path} lists no images")
    return rows


def _labels(table: list[Row], config: Any) -> tuple[Labels | None, list[str]]:  # [N] or [N, C], the class names
    columns = _columns(config.label_column)
    if len(columns) > 1:
        return columns_of_classes(table, columns), columns
    if not columns:
        return None, []
    cells = [row[columns[0]] for row in table]
    return several_classes(cells, config.label_separator) if config.label_separator else class_numbers(cells)


def _chosen(
    rows: list[Row],
    split: str,
    labels: Labels | None,  # [N] or [N, C]
    config: Any,
) -> Any:  # numbers of the rows in the split
    if config.split_column:
        return np.array([i for i, row in enumerate(rows) if split in ("all", _split_of(row, config))], dtype=np.int64)
    single = labels if labels is not None and labels.ndim == 1 else None
    return chosen_rows(config, split, {"train": np.arange(len(rows))}, single, len(rows))


def _split_of(row: Row, config: Any) -> str:
    split = row[config.split_column]
    if split not in PARTS:
        raise ValueError(f"data.split_column: expected train, val or test in {config.path}, got {split!r}")
    return split
