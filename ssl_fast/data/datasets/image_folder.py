"""A folder of image files: class folders or none, train/val/test folders or one pool that is split here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_fast.data.encoded import EncodedConfig, FileDataset
from ssl_fast.data.parts import PARTS, chosen_rows, folder_classes, part_rows, splits_of
from ssl_fast.data.scan import scan


class ImageFolder(FileDataset):
    """The image files under `root`, sorted by name.

    Splits: `root/train` makes `root/{train,val,test}` the splits (without test, val is the test set). Otherwise all
    files are one pool: `test_fraction` of it is the test set, and val_fraction or the folds cut the rest. "all" is
    every file. Classes are the folders directly inside, when there are two or more and no image lies beside them.
    """

    @dataclass
    class Config(EncodedConfig):
        """Where the files are, what is taken, and how they are split; and how they are read: `EncodedConfig`.

        Args:
            root: the folder.
            labelled: class folders are classes; False ignores them.
            scan: "full" decodes every file once, the first time; "header" only looks at sizes.
        """

        name: str = "image_folder"
        root: str = ""
        labelled: bool = True
        scan: str = "full"
        test_fraction: float = 0.1

    def __init__(self, config: Any, split: str) -> None:
        if config.scan not in ("full", "header"):
            raise ValueError(f"data.scan: expected 'full' or 'header', got {config.scan!r}")
        self.root = _root(config)
        self._prepare(config, self.root)
        found = scan(self.root, self.limits, config.scan == "full", channels=self.channels)
        self._record(found.refused, len(found.names) + len(found.refused))
        parts = part_rows(found.names)
        labels, self.classes = folder_classes(found.names, parts) if config.labelled else (None, [])
        rows = chosen_rows(config, split, parts, labels, len(found.names))
        if not len(rows):
            raise ValueError(f"data.root: no images in the split {split!r} of {config.root}")
        self.labels = None if labels is None else labels[rows]
        self.names, self.sizes = [found.names[i] for i in rows], found.sizes[rows]
        if self.labels is not None and self.labels.min() < 0:
            stranger = self.names[int(self.labels.argmin())].split("/")[1]
            raise ValueError(f"data.root: class folder {stranger!r} is not among those of the training images")
        self._finish(config, found.fingerprint)

    @staticmethod
    def splits(config: Any) -> tuple[str, ...]:
        """The splits of the folder with this config."""
        return splits_of(config, [name for name in PARTS if (_root(config) / name).is_dir()])


def _root(config: Any) -> Path:
    if not config.root:
        raise ValueError("data.root: expected a folder of images")
    return Path(config.root)
