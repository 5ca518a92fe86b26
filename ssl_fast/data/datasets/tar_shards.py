"""Images in tar shards, in WebDataset's layout: 000.jpg and 000.cls (or .json, .txt) make the sample 000."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.captions import texts_of
from ssl_fast.data.dataset import Labels
from ssl_fast.data.decode import check_bytes
from ssl_fast.data.encoded import EncodedConfig, EncodedDataset
from ssl_fast.data.parts import PARTS, chosen_rows, part_rows, splits_of
from ssl_fast.data.scan import look
from ssl_fast.data.shards import Index, open_index
from ssl_fast.data.tables import class_numbers


class TarShards(EncodedDataset):
    """The images of all `.tar` files under `root`, ordered by shard and key.

    Where each image lies is found once and cached; an image is then read from its place, so that the order of an epoch
    is that of any other data set, whatever the shards. Splits as those of `image_folder`: folders train/, val/ and
    test/ of shards, or one pool that is divided.
    """

    @dataclass
    class Config(EncodedConfig):
        """Where the shards are and what their labels are called; and how images are read: `EncodedConfig`.

        Args:
            root: the folder of the shards.
            label: "cls", "json" or "txt": the file that holds a sample's class; "auto" takes cls, else json; "none".
            label_key: the class's name in the .json file.
            caption: "txt" or "json": the file that holds a sample's caption; "" for none.
            caption_key: the caption in the .json file, or a list of them.
            scan: "header" looks at the sizes of all images, the first time; "full" decodes every one.
        """

        name: str = "tar_shards"
        root: str = ""
        label: str = "auto"
        label_key: str = "label"
        caption: str = ""
        caption_key: str = "caption"
        scan: str = "header"

    def __init__(self, config: Any, split: str) -> None:
        if config.scan not in ("full", "header"):
            raise ValueError(f"data.scan: expected 'full' or 'header', got {config.scan!r}")
        self.root = _root(config)
        self._prepare(config, self.root)
        index = open_index(self.root)
        self._shards, self._places = index.shards, np.stack([index.shard, index.begin, index.size], axis=1)
        full, place = config.scan == "full", f"data.root: {self.root}"
        found = look(index.names, index.stamps, self.encoded, self.limits, full, self.channels, place)
        self._record(found.refused, len(index.names))
        labels, self.classes = _labels(index, config)
        captions = _captions(index, found.good, config)
        good = None if labels is None else labels[found.good]
        rows = chosen_rows(config, split, part_rows(found.names), good, len(found.names))
        if not len(rows):
            raise ValueError(f"data.root: no images in the split {split!r} of {config.root}")
        self._places = self._places[found.good[rows]]
        self.names, self.sizes = [found.names[i] for i in rows], found.sizes[rows]
        self.labels = None if good is None else good[rows]
        self.captions = None if captions is None else [captions[i] for i in rows]
        self._finish(config, found.fingerprint)

    @staticmethod
    def splits(config: Any) -> tuple[str, ...]:
        """The splits of the folder with this config."""
        return splits_of(config, [name for name in PARTS if (_root(config) / name).is_dir()])

    def encoded(self, i: int) -> bytes:
        """The image's file, read from its place in the shard."""
        shard, begin, size = self._places[i].tolist()
        check_bytes(size, self.limits)
        with open(self.root / self._shards[shard], "rb") as file:
            file.seek(begin)
            return file.read(size)


def _root(config: Any) -> Path:
    if not config.root:
        raise ValueError("data.root: expected a folder of .tar shards")
    return Path(config.root)


def _labels(index: Index, config: Any) -> tuple[Labels | None, list[str]]:  # [N], the class names
    if config.label not in ("auto", "cls", "json", "txt", "none"):
        raise ValueError(f"data.label: expected 'auto', 'cls', 'json', 'txt' or 'none', got {config.label!r}")
    complete = [kind for kind in ("cls", "json") if all(index.texts[kind])]
    kind = (complete or ["none"])[0] if config.label == "auto" else config.label
    if kind == "none":
        return None, []
    texts = index.texts[kind]
    if "" in texts:
        name = index.names[texts.index("")]
        raise ValueError(f"data.label: sample {name} has no .{kind}, nor have {texts.count('') - 1} others")
    if kind == "json":
        found = [_from_json(text, name, config) for text, name in zip(texts, index.names, strict=True)]
        if None in found:
            return None, []
        texts = [text for text in found if text is not None]
    return class_numbers(texts)


def _captions(
    index: Index,
    good: NDArray[np.int64],  # [n] numbers of the samples that can be used
    config: Any,
) -> list[list[str]] | None:  # n, each one or more
    if config.caption not in ("", "txt", "json"):
        raise ValueError(f"data.caption: expected 'txt', 'json' or '', got {config.caption!r}")
    if not config.caption:
        return None
    found = [_texts(index.texts[config.caption][i], config) for i in good.tolist()]
    if [] in found:
        name = index.names[good[found.index([])]]
        what = f".{config.caption}" + (f" with {config.caption_key!r}" if config.caption == "json" else "")
        raise ValueError(f"data.caption: sample {name} has no {what}, nor have {found.count([]) - 1} others")
    return found


def _texts(content: str, config: Any) -> list[str]:
    """The captions in a sample's file; none where it has none."""
    value: Any = content
    if config.caption == "json":
        try:
            value = json.loads(content)[config.caption_key]
        except (ValueError, KeyError, TypeError):
            return []
    return texts_of(value)


def _from_json(text: str, name: str, config: Any) -> str | None:
    """The class in a sample's .json; None where it has none and none was asked for."""
    try:
        value = json.loads(text)[config.label_key]
    except (ValueError, KeyError, TypeError) as error:
        if config.label == "auto":
            return None
        raise ValueError(f"data.label_key: no {config.label_key!r} in the .json of sample {name}") from error
    return str(value)
