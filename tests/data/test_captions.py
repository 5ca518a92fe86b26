"""Captions: of classes or files of templates, chosen as a function of (seed, epoch, sample), as tokens in batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ssl_fast.data.captions import TEMPLATES, add_captions, chosen, describe, read_templates, texts_of
from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View

NUM = 23


def code_points(texts: Any) -> NDArray[np.int64]:
    """A tokenizer that a test can read: the numbers of the first 30 letters."""
    return np.array([[ord(c) for c in text[:30].ljust(30)] for text in texts], dtype=np.int64)


def read(tokens: Any) -> list[str]:
    return ["".join(map(chr, row)).rstrip() for row in tokens.tolist()]


def dataset(captions: Any = None) -> ArrayDataset:
    images = np.random.default_rng(0).integers(0, 256, (NUM, 8, 8, 3), dtype=np.uint8)
    made = ArrayDataset(images, np.arange(NUM) % 2, ["sea_lion", "owl"])
    made.captions = captions
    return made


def batches(
    data: ArrayDataset, workers: int = 0, start: str = "fork", rank: int = 0, size: int = 1, **other: Any
) -> Any:
    options: Any = {"batch_size": 6, "seed": 3, "shuffle": True, "drop_last": False} | other
    config = LoaderConfig("torchvision", workers, 2, start)
    loader = Loader(data, [View(size=4)], config, rank=rank, world_size=size, **options)
    found = {}
    for batch in loader.epoch(1):
        found |= dict(zip(batch.index.tolist(), read(batch.extras["tokens"]), strict=True))
    loader.close()
    return found


@pytest.mark.parametrize("cut", [{"workers": 2}, {"workers": 1, "start": "thread"}, {"batch_size": 5}])
def test_the_chosen_caption_is_a_function_of_seed_epoch_and_sample(cut: dict[str, Any]) -> None:
    data = dataset([[f"{i} {n}" for n in range(1 + i % 4)] for i in range(NUM)])
    add_captions(data, "", code_points)
    whole = batches(data)
    assert sorted(whole) == list(range(NUM)) and all(text.startswith(f"{i} ") for i, text in whole.items())
    assert batches(data, **cut) == whole
    assert batches(data, rank=0, size=2) | batches(data, rank=1, size=2) == whole
    assert batches(data, seed=4) != whole


def test_each_caption_is_chosen_as_often() -> None:
    captions = [["a", "b", "c", "d"]] * 1000
    index = np.arange(1000)
    texts = [text for epoch in range(8) for text in chosen(captions, index, 0, epoch)]
    counts = [texts.count(text) for text in "abcd"]
    assert sum(counts) == 8000 and max(abs(count - 2000) for count in counts) < 150  # 4 deviations
    assert chosen(captions, index, 0, 1) != chosen(captions, index, 0, 2)


def test_captions_from_classes_and_from_a_file(tmp_path: Path) -> None:
    data = dataset()
    add_captions(data, "classes", code_points)
    assert data.captions is not None and len(data.captions) == NUM
    assert data.captions[0] == describe("sea lion", TEMPLATES) and data.captions[1][0] == "a photo of a owl"
    (tmp_path / "t.txt").write_text("one {}\n\ntwo {} of them\n")
    add_captions(data, str(tmp_path / "t.txt"), None)
    assert data.captions[:2] == [("one sea lion", "two sea lion of them"), ("one owl", "two owl of them")]
    assert data.extras(np.arange(2), 0, 0) == {}  # nobody asked for tokens


def test_the_views_are_those_without_captions() -> None:
    """Randomness of captions has a stream of its own."""
    data, plain = dataset(), dataset()
    add_captions(data, "classes", code_points)
    options: Any = {"batch_size": NUM, "seed": 3, "shuffle": True, "drop_last": False}
    ours, theirs = (
        next(Loader(each, [View(size=4)] * 2, LoaderConfig("torchvision", 0), **options).epoch(0))
        for each in (data, plain)
    )
    assert all((a == b).all() for a, b in zip(ours.views, theirs.views, strict=True)) and not theirs.extras


def test_texts_of_what_files_hold() -> None:
    assert texts_of("a ") == ["a"] and texts_of(["a", "", None, "b"]) == ["a", "b"]
    assert texts_of(None) == texts_of("") == []


def test_errors_name_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data: expected a data set with captions .*data.captions=classes"):
        add_captions(dataset(), "", code_points)
    unlabelled = ArrayDataset(np.zeros((2, 4, 4, 3), np.uint8), None, [])
    with pytest.raises(ValueError, match=r"data.captions: expected a data set with one class a sample"):
        add_captions(unlabelled, "classes", None)
    with pytest.raises(ValueError, match=r"data.captions: no.txt cannot be read as a file of templates"):
        add_captions(dataset(), "no.txt", None)
    for content, got in (("", "an empty file"), ("a photo\n", "'a photo'"), ("{} and {}\n", "'{} and {}'")):
        (tmp_path / "t.txt").write_text(content)
        with pytest.raises(ValueError, match=r"templates: .* expected lines with one {} each .* got " + got):
            read_templates("templates", str(tmp_path / "t.txt"))
