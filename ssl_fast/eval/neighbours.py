"""A picture of nearest neighbours: what a representation takes for similar, beside what others take for it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_fast.data.dataset import Dataset, Image
from ssl_fast.eval.features import Features
from ssl_fast.eval.knn import nearest_neighbours

_GREEN, _RED, _PAPER, _INK = (46, 160, 67), (207, 34, 46), (255, 255, 255), (36, 41, 47)
_FRAME, _GAP, _COLUMN_GAP, _HEADING = 3, 2, 18, 18  # pixels


def save_neighbours(
    path: str | Path,
    train_set: Dataset,
    query_set: Dataset,
    kinds: Mapping[str, tuple[Features | Tensor, Features | Tensor]],  # name -> (of training [N, F], of queries [Q, F])
    queries: Sequence[int],
    *,
    k: int = 6,
    size: int = 48,
) -> dict[str, float]:
    """Writes a PNG: each row a query image, then for each kind of feature its k nearest training images.

    Neighbours of the query's class are framed green, others red; without labels there is no frame.

    Args:
        path: the file to write.
        train_set, query_set: the data sets that the features are of.
        kinds: features of both sets by the name to print above them ("raw pixels", "random", "learned"); a tensor has
            a row for each sample, in order.
        queries: sample numbers of the query set to show; one without a row (a broken file) is left out.
        k: neighbours of each kind, or as many as all kinds have.
        size: side of an image in the picture, pixels.

    Returns:
        For each kind the share of shown neighbours that have their query's class (empty without labels).

    Raises:
        ValueError: no queries, a query out of range, or features that do not fit the data sets.
    """
    from PIL import Image as Picture
    from PIL import ImageDraw

    k = min([k, *(len(train) for train, _ in kinds.values())])
    found, queries = _search(train_set, query_set, kinds, queries, k)
    step = size + 2 * _FRAME + _GAP
    block = k * step + _COLUMN_GAP
    picture = Picture.new("RGB", (step + _COLUMN_GAP + block * len(kinds), _HEADING + step * len(queries)), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_FRAME, 3), "query", _INK)
    for row, query in enumerate(queries):
        _paste(picture, _thumbnail(query_set, query, size), (0, _HEADING + row * step), _PAPER)
    shares = {}
    for number, (kind, index) in enumerate(found.items()):
        corner = (step + _COLUMN_GAP + number * block, _HEADING)
        right = _matches(train_set, query_set, queries, index)
        for row, column in itertools.product(range(len(queries)), range(k)):
            frame = _PAPER if right is None else _GREEN if right[row, column] else _RED
            image = _thumbnail(train_set, int(index[row, column]), size)
            _paste(picture, image, (corner[0] + column * step, corner[1] + row * step), frame)
        if right is not None:
            shares[kind] = right.double().mean().item()
        draw.text((corner[0], 3), kind + (f": {shares[kind]:.0%} of these right" if kind in shares else ""), _INK)
    picture.save(path)
    return shares


def _search(
    train_set: Dataset,
    query_set: Dataset,
    kinds: Mapping[str, tuple[Features | Tensor, Features | Tensor]],
    queries: Sequence[int],
    k: int,
) -> tuple[dict[str, Tensor], list[int]]:
    """For each kind the sample numbers of the neighbours, [shown queries, k], and the queries that all kinds know."""
    if not queries or not kinds:
        raise ValueError(f"queries, kinds: expected at least one of each, got {len(queries)} and {len(kinds)}")
    if min(queries) < 0 or max(queries) >= len(query_set):
        raise ValueError(f"queries: expected sample numbers from 0 to {len(query_set) - 1}, got {list(queries)}")
    rows = {kind: (_rows(kind, a, train_set), _rows(kind, b, query_set)) for kind, (a, b) in kinds.items()}
    known = set.intersection(*(set(query.index.tolist()) for _, query in rows.values()))
    shown = [query for query in queries if query in known]
    if not shown:
        raise ValueError(f"queries: none of {list(queries)} could be decoded")
    found = {}
    for kind, (train, query) in rows.items():
        position = torch.searchsorted(query.index, torch.tensor(shown))
        found[kind] = train.index[nearest_neighbours(train.h, query.h[position], k)[1].cpu()]
    return found, shown


def _rows(kind: str, features: Features | Tensor, dataset: Dataset) -> Features:
    """Features with their sample numbers."""
    if isinstance(features, Features):
        return features
    if len(features) != len(dataset):
        raise ValueError(f"kinds[{kind!r}]: expected a row for each sample, {len(dataset)}, got {len(features)}")
    return Features(features, None, None, torch.arange(len(features)))


def _matches(
    train_set: Dataset,
    query_set: Dataset,
    queries: Sequence[int],
    index: Tensor,  # [len(queries), k]
) -> Tensor | None:
    """Which neighbours have their query's class: [len(queries), k] bool, or None without one label a sample."""
    if not (train_set.has_classes and query_set.has_classes):
        return None
    train_y, query_y = torch.tensor(train_set.labels), torch.tensor(query_set.labels)
    own = query_y[list(queries)][:, None]
    return (train_y[index] == own) & (own >= 0)


def _paste(picture: Any, image: Any, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Puts an image with a frame around it at `corner` (x, y)."""
    x, y = corner
    picture.paste(colour, (x, y, x + image.width + 2 * _FRAME, y + image.height + 2 * _FRAME))
    picture.paste(image, (x + _FRAME, y + _FRAME))


def shown(
    pixels: Image,  # uint8 [H, W, C]
) -> Image:  # [H, W] or [H, W, 3]
    """What a picture shows of any number of channels: the first three as colours, of fewer the first as grey."""
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]


def _thumbnail(dataset: Dataset, i: int, size: int) -> Any:
    """Sample i as an RGB picture of `size` x `size`: the centred square of the image."""
    from PIL import Image as Picture
    from PIL import ImageOps

    image = Picture.fromarray(shown(dataset.read(i))).convert("RGB")
    return ImageOps.fit(image, (size, size), Picture.Resampling.BILINEAR)
