"""A folder of image files: class folders or none, train/val/test folders or one pool that is split here.

A file that cannot be decoded is found by the scan when the folder is first opened (verdicts are cached), dropped, and
recorded in the quarantine file. One that breaks later, or that a header scan let through, is replaced by the next
readable sample of the split, which is a function of the files alone, so the order of an epoch stays one too.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.bands import UnreadableError
from ssl_fast.data.cache import cache_folder
from ssl_fast.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset, Image
from ssl_fast.data.decode import Limits, decode, read_bytes
from ssl_fast.data.quarantine import Quarantine
from ssl_fast.data.scan import scan
from ssl_fast.data.splits import Rows, hold_out, limited, split_rows

_log = logging.getLogger(__name__)
_GREY_MEAN, _GREY_STD = (0.459,), (0.226,)  # luma of ImageNet's mean; mean of its deviations


class ImageFolder(Dataset):
    """The image files under `root`, sorted by name.

    Splits: `root/train` makes `root/{train,val,test}` the splits (without test, val is the test set). Otherwise all
    files are one pool: `test_fraction` of it is the test set, and val_fraction or the folds cut the rest. "all" is
    every file. Classes are the folders directly inside, when there are two or more and no image lies beside them.
    """

    @dataclass
    class Config:
        """Where the files are, what is taken, and how they are split.

        Args:
            root: the folder.
            color: three channels; False makes one.
            labelled: class folders are classes; False ignores them.
            scan: "full" decodes every file once, the first time; "header" only looks at sizes.
            val_fraction, test_fraction: shares held out where there are no such folders, seeded and stratified.
            fold, num_folds: cross-validation instead of val_fraction: "val" is fold `fold`, "train" the others.
            limit, limit_test: keep so many training, test images, the first after a seeded shuffle; 0 keeps all.
            split_seed: seed of the hold-outs, the folds and the limits.
            max_pixels, max_bytes: larger files are refused.
            quarantine: file that refused files are recorded in; "" for one in the cache folder.
        """

        name: str = "image_folder"
        root: str = ""
        color: bool = True
        labelled: bool = True
        scan: str = "full"
        val_fraction: float = 0.0
        test_fraction: float = 0.1
        fold: int = 0
        num_folds: int = 0
        limit: int = 0
        limit_test: int = 0
        split_seed: int = 0
        max_pixels: int = 64_000_000
        max_bytes: int = 64 << 20
        quarantine: str = ""

    names: list[str]

    def __init__(self, config: Any, split: str) -> None:
        if config.scan not in ("full", "header"):
            raise ValueError(f"data.scan: expected 'full' or 'header', got {config.scan!r}")
        self.root, self.limits = _root(config), Limits(config.max_bytes, config.max_pixels)
        found = scan(self.root, self.limits, config.scan == "full")
        self.quarantine = Quarantine(_quarantine_path(config, self.root))
        if self.quarantine.add(found.refused):
            total, where = len(found.names) + len(found.refused), self.quarantine.path
            _log.warning("%d of %d image files cannot be used and are left out: %s", len(found.refused), total, where)
        rows, labels, self.classes = _select(config, split, found.names)
        self.labels = labels
        self.names, self.sizes = [found.names[i] for i in rows], found.sizes[rows]
        self._digest = hashlib.sha256(f"{found.fingerprint} {self.names} {config.color}".encode(errors="replace"))
        self.channels = 3 if config.color else 1
        self.mean, self.std = (IMAGENET_MEAN, IMAGENET_STD) if config.color else (_GREY_MEAN, _GREY_STD)

    @staticmethod
    def splits(config: Any) -> tuple[str, ...]:
        """The splits of the folder with this config."""
        root = _root(config)
        folders = [name for name in ("train", "val", "test") if (root / name).is_dir()]
        val = "val" in folders or config.val_fraction > 0 or config.num_folds > 0
        test = "test" in folders or ("val" in folders if "train" in folders else config.test_fraction > 0)
        return ("train", *(["val"] if val else []), *(["test"] if test else []), "all")

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, i: int) -> bytes:
        """The file's content.

        Raises:
            UnreadableError: it cannot be read, or is larger than the limit.
        """
        return read_bytes(self.root / self.names[i], self.limits)

    def read(self, i: int) -> Image:
        """Image i; UnreadableError when the file broke since it was scanned."""
        return decode(self.encoded(i), self.channels, self.limits)

    def fetch(
        self,
        index: NDArray[np.int64],  # [N]
    ) -> tuple[list[Image], NDArray[np.int64]]:
        """The images, each with the number of the sample that was read: itself, or the next one that can be."""
        pairs = [self._readable(int(i)) for i in index]
        return [image for image, _ in pairs], np.array([i for _, i in pairs], dtype=np.int64)

    def fingerprint(self) -> str:
        """Of the names, sizes and times of the files."""
        return self._digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_digest": None}  # hash objects cannot be sent to a worker, which needs none

    def _readable(self, i: int) -> tuple[Image, int]:
        for candidate in (*range(i, len(self)), *range(i)):
            try:
                return self.read(candidate), candidate
            except UnreadableError as refusal:
                self.quarantine.add([(self.names[candidate], str(refusal))])
        raise ValueError(f"data.root: no image under {self.root} can be decoded any more")


def _root(config: Any) -> Path:
    if not config.root:
        raise ValueError("data.root: expected a folder of images")
    return Path(config.root)


def _quarantine_path(config: Any, root: Path) -> Path:
    name = hashlib.sha256(str(root.resolve()).encode(errors="replace")).hexdigest()[:16]
    return Path(config.quarantine) if config.quarantine else cache_folder() / name / "quarantine.jsonl"


def _select(
    config: Any,
    split: str,
    names: Sequence[str],
) -> tuple[Rows, NDArray[np.int64] | None, list[str]]:
    """(rows of `names` in the split, their labels, the class names)."""
    parts = _parts(names)
    pool = parts["train"]
    classes = _class_names([inside for _, inside in pool]) if config.labelled else []
    labels = _labels([inside for _, inside in pool], classes)
    if split in parts and split != "train":
        chosen = parts[split]
        rows = limited(np.arange(len(chosen)), config.limit_test, config.split_seed) if split == "test" else None
    elif split == "test" and "val" in parts:
        chosen, rows = parts["val"], limited(np.arange(len(parts["val"])), config.limit_test, config.split_seed)
    else:
        chosen, rows = pool, _pool_rows(config, split, labels, len(pool), whole="val" in parts or "test" in parts)
    rows = np.arange(len(chosen)) if rows is None else rows
    if not len(rows):
        raise ValueError(f"data.root: no images in the split {split!r} of {config.root}")
    chosen_labels = _labels([inside for _, inside in chosen], classes)
    numbers = np.array([number for number, _ in chosen], dtype=np.int64)
    return numbers[rows], None if chosen_labels is None else chosen_labels[rows], classes


def _pool_rows(
    config: Any,
    split: str,
    labels: NDArray[np.int64] | None,  # [num]
    num: int,
    whole: bool,
) -> Rows:
    """Train, val and test of one pool: the test set is held out first, unless there is a folder for it."""
    fraction = 0.0 if whole else config.test_fraction
    kept, out = hold_out(num, labels, fraction, config.split_seed)
    if split == "test":
        return limited(out, config.limit_test, config.split_seed)
    return kept[split_rows(config, split, None if labels is None else labels[kept], len(kept))]


Part = list[tuple[int, str]]  # (row, name inside the part)


def _parts(names: Sequence[str]) -> dict[str, Part]:
    """The files of train/, val/ and test/, or all of them as "train"; and "all"."""
    rows = list(enumerate(names))
    parts = {
        split: [(i, name.removeprefix(f"{split}/")) for i, name in rows if name.startswith(f"{split}/")]
        for split in ("train", "val", "test")
    }
    found = {split: part for split, part in parts.items() if part}
    if "train" not in found:
        return {"train": rows, "all": rows}
    return {**found, "all": [(i, name.split("/", 1)[-1]) for i, name in rows]}


def _class_names(inside: Sequence[str]) -> list[str]:
    if any("/" not in name for name in inside):
        return []
    classes = sorted({name.split("/", 1)[0] for name in inside})
    return classes if len(classes) > 1 else []


def _labels(inside: Sequence[str], classes: list[str]) -> NDArray[np.int64] | None:
    if not classes:
        return None
    numbers = {name: number for number, name in enumerate(classes)}
    folders = [name.split("/", 1)[0] for name in inside]
    unknown = sorted({folder for folder in folders if folder not in numbers})
    if unknown:
        raise ValueError(f"data.root: class folder {unknown[0]!r} is not among those of the training images")
    return np.array([numbers[folder] for folder in folders], dtype=np.int64)
