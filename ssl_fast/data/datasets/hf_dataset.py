"""A Hugging Face data set in local files: saved by `save_to_disk`, or a folder of parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.captions import texts_of
from ssl_fast.data.dataset import Labels
from ssl_fast.data.decode import check_bytes, read_bytes
from ssl_fast.data.encoded import EncodedConfig, EncodedDataset
from ssl_fast.data.parts import PARTS, chosen_rows, part_rows, splits_of
from ssl_fast.data.scan import find_files, look, stamps_of
from ssl_fast.data.tables import class_numbers

_WORDS = {"validation": "val", "valid": "val", "dev": "val"}  # what others call our splits


class HFDataset(EncodedDataset):
    """The rows of a `datasets.Dataset`, or of the splits of a `datasets.DatasetDict`; nothing is downloaded.

    The split "validation" is "val" here; what has only "train" is a pool that is divided, as in `image_folder`.
    """

    @dataclass
    class Config(EncodedConfig):
        """Where the files are and what the columns are called; and how images are read: `EncodedConfig`.

        Args:
            path: folder of `save_to_disk`, or of parquet files named after their splits (train-00000-of-00002.parquet).
            column: of the images (a feature `Image`, or the encoded bytes).
            label_column: of the classes (a `ClassLabel`, numbers or names); "" for none. Without one: -1.
            caption_column: of the captions, a text or a list of them; "" for none.
            scan: "header" looks at the sizes of all images, the first time; "full" decodes every one.
        """

        name: str = "hf_dataset"
        path: str = ""
        column: str = "image"
        label_column: str = ""
        caption_column: str = ""
        scan: str = "header"

    def __init__(self, config: Any, split: str) -> None:
        if config.scan not in ("full", "header"):
            raise ValueError(f"data.scan: expected 'full' or 'header', got {config.scan!r}")
        self._prepare(config, config.path)
        parts = _open(config)
        self._column = config.column
        self._tables = [_encoded(part, config) for part in parts.values()]
        self._places = np.array([(t, row) for t, part in enumerate(self._tables) for row in range(len(part))])
        names = [f"{name}/{row:09d}" for name, part in parts.items() for row in range(len(part))]
        full, place = config.scan == "full", f"data.path: {config.path}"
        found = look(names, _stamps(config), self.encoded, self.limits, full, self.channels, place)
        self._record(found.refused, len(names))
        labels, self.classes = _labels(list(parts.values()), config)
        captions = _captions(list(parts.values()), found.good, config)
        good = None if labels is None else labels[found.good]
        rows = chosen_rows(config, split, part_rows(found.names), good, len(found.names))
        if not len(rows):
            raise ValueError(f"data.path: no images in the split {split!r} of {config.path}")
        self._places = self._places[found.good[rows]]
        self.names, self.sizes = [found.names[i] for i in rows], found.sizes[rows]
        self.labels = None if good is None else good[rows]
        self.captions = None if captions is None else [captions[i] for i in rows]
        self._finish(config, found.fingerprint)

    @staticmethod
    def splits(config: Any) -> tuple[str, ...]:
        """The splits of the data set with this config."""
        return splits_of(config, [name for name in _open(config) if name in PARTS])

    def encoded(self, i: int) -> bytes:
        """The image's file, out of the table or where the table says that it lies."""
        part, row = self._places[i].tolist()
        value = self._tables[part][row][self._column]
        content = value if isinstance(value, bytes) else (value or {}).get("bytes")
        if content is None:
            path = (value or {}).get("path")
            if not path:
                raise UnreadableError("the row has no image")
            return read_bytes(Path(path), self.limits)
        check_bytes(len(content), self.limits)
        return bytes(content)


def _open(config: Any) -> dict[str, Any]:
    """{our name of the split: datasets.Dataset}."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("data=hf_dataset needs the package datasets: pip install datasets") from error
    folder = Path(config.path)
    if not config.path or not folder.is_dir():
        raise ValueError(f"data.path: expected a folder of a Hugging Face data set, got {config.path!r}")
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
            found = datasets.load_from_disk(config.path)
        else:
            files = _parquet_files(folder)
            found = {part: datasets.Dataset.from_parquet(paths) for part, paths in files.items()}
    except (OSError, ValueError) as error:
        raise ValueError(f"data.path: {config.path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    parts = dict(found) if isinstance(found, dict) else {"train": found}
    return {_WORDS.get(name, name): part for name, part in parts.items()}


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """The files by split: the first word of their names; all are "train" where none begins so."""
    files = find_files(folder, (".parquet",))
    if not files:
        raise ValueError("neither a folder of save_to_disk nor parquet files")
    words = {file: Path(file).name.replace(".", "-").split("-")[0] for file in files}
    known = any(_WORDS.get(word, word) in PARTS for word in words.values())
    parts: dict[str, list[str]] = {}
    for file, word in words.items():
        parts.setdefault(word if known else "train", []).append(str(folder / file))
    return parts


def _encoded(part: Any, config: Any) -> Any:
    """The image column alone, as files instead of pictures."""
    import datasets

    if config.column not in part.column_names:
        columns = ", ".join(part.column_names)
        raise ValueError(f"data.column: {config.path} has no column {config.column!r} (columns: {columns})")
    table = part.select_columns([config.column])
    feature = table.features[config.column]
    return (
        table.cast_column(config.column, datasets.Image(decode=False)) if isinstance(feature, datasets.Image) else table
    )


def _labels(parts: list[Any], config: Any) -> tuple[Labels | None, list[str]]:  # [N], the class names
    if not config.label_column:
        return None, []
    values = _values(parts, "label_column", config)
    names = getattr(parts[0].features[config.label_column], "names", None)
    if names is None:
        return class_numbers(["" if value is None else str(value) for value in values])
    return np.array([-1 if value is None else value for value in values], dtype=np.int64), list(names)


def _captions(
    parts: list[Any],
    good: NDArray[np.int64],  # [n] numbers of the rows that can be used
    config: Any,
) -> list[list[str]] | None:  # n, each one or more
    if not config.caption_column:
        return None
    values = _values(parts, "caption_column", config)
    found = [texts_of(values[i]) for i in good.tolist()]
    if [] in found:
        column, number = config.caption_column, found.count([])
        raise ValueError(f"data.caption_column: {number} rows have no text in column {column!r}")
    return found


def _values(parts: list[Any], setting: str, config: Any) -> list[Any]:
    """A column of all parts, one after the other."""
    column = getattr(config, setting)
    for part in parts:
        if column not in part.column_names:
            raise ValueError(f"data.{setting}: no column {column!r} (columns: {', '.join(part.column_names)})")
    return [value for part in parts for value in part[column]]


def _stamps(config: Any) -> str:
    folder = Path(config.path)
    return stamps_of(folder, find_files(folder, (".arrow", ".parquet", ".json")))
