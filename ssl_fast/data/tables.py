"""Tables as rows of text: CSV, TSV and JSON lines by the standard library, parquet by pyarrow."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, str]


def read_table(path: str, columns: dict[str, list[str]]) -> list[Row]:
    """The rows of a table: `.tsv`, `.jsonl`, `.parquet` by their ending, all others are CSV (UTF-8, a header line).

    JSON lines are an object each; one with a list of values stands for as many rows as the list is long.

    Args:
        path: the file.
        columns: the columns that must be there, by the setting that names them.

    Raises:
        ValueError: no such file, not of its kind, or a column is missing.
        ImportError: a parquet file, and pyarrow is not installed.
    """
    if not path:
        raise ValueError("data.path: expected a CSV file, or .tsv, .jsonl or .parquet")
    kind = {".tsv": "TSV", ".jsonl": "JSON lines", ".parquet": "parquet"}.get(Path(path).suffix.lower(), "CSV")
    wanted = [name for names in columns.values() for name in names]
    try:
        if kind == "JSON lines":
            known, rows = _json_lines(path)
        else:
            known, rows = _parquet(path, wanted) if kind == "parquet" else _text(path, "\t" if kind == "TSV" else ",")
    except (OSError, ValueError, csv.Error) as error:  # UnicodeDecodeError and pyarrow's ArrowInvalid are ValueError
        raise ValueError(f"data.path: {path} cannot be read as {kind}: {error}") from error
    for setting, names in columns.items():
        for name in names:
            if name not in known:
                raise ValueError(f"data.{setting}: {path} has no column {name!r} (columns: {', '.join(known)})")
    return rows


def _text(path: str, delimiter: str) -> tuple[list[str], list[Row]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=delimiter, restval="")
        return list(reader.fieldnames or []), list(reader)


def _json_lines(path: str) -> tuple[list[str], list[Row]]:
    known: dict[str, None] = {}
    rows: list[Row] = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(entry, dict):
                raise ValueError(f"line {number} is no object")
            known |= dict.fromkeys(entry)
            rows += _flat(entry)
    return list(known), [{name: row.get(name, "") for name in known} for row in rows]


def _flat(entry: dict[str, Any]) -> Iterator[Row]:
    """An object as rows of text: one for each value of its lists."""
    longest = max((len(value) for value in entry.values() if isinstance(value, list)), default=1)
    for i in range(longest):
        cells = {name: value[i : i + 1] if isinstance(value, list) else [value] for name, value in entry.items()}
        yield {name: str(cell[0]) if cell and cell[0] is not None else "" for name, cell in cells.items()}


def _parquet(path: str, wanted: list[str]) -> tuple[list[str], list[Row]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("data.path: a parquet table needs pyarrow: pip install ssl_fast[recipes]") from error
    known = pyarrow.parquet.read_schema(path).names
    found = [name for name in dict.fromkeys(wanted) if name in known]
    columns = pyarrow.parquet.read_table(path, columns=found).to_pydict()
    texts = {name: ["" if value is None else str(value) for value in values] for name, values in columns.items()}
    return known, [dict(zip(texts, values, strict=True)) for values in zip(*texts.values(), strict=True)]


def class_numbers(names: list[str]) -> tuple[NDArray[np.int64], list[str]]:  # [N], the class names
    """One class a row, -1 where it is empty: sorted by name, or by number where all are whole numbers."""
    unique = set(names) - {""}
    classes = sorted(unique, key=int) if all(name.isdecimal() for name in unique) else sorted(unique)
    numbers = {name: number for number, name in enumerate(classes)} | {"": -1}
    return np.array([numbers[name] for name in names], dtype=np.int64), classes


def several_classes(cells: list[str], separator: str) -> tuple[NDArray[np.int64], list[str]]:  # [N, C] 0 or 1
    """Any number of classes a row, their names with `separator` between them; an empty cell has none."""
    sets = [[name.strip() for name in cell.split(separator) if name.strip()] for cell in cells]
    classes = sorted({name for names in sets for name in names})
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.zeros((len(cells), len(classes)), dtype=np.int64)
    for row, names in zip(labels, sets, strict=True):
        row[[numbers[name] for name in names]] = 1
    return labels, classes


def columns_of_classes(rows: list[Row], columns: list[str]) -> NDArray[np.int64]:  # [N, C] 0 or 1
    """A column for each class, holding 0 or 1 (empty is 0).

    Raises:
        ValueError: another value.
    """
    values = {"": 0, "0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}
    for row in rows:
        for column in columns:
            if row[column] not in values:
                raise ValueError(f"data.label_column: expected 0 or 1 in column {column!r}, got {row[column]!r}")
    return np.array([[values[row[column]] for column in columns] for row in rows], dtype=np.int64)
