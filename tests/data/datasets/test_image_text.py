"""Pairs of image and text: tables of all kinds, several captions an image, splits, and what is left out."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssl_fast.data.datasets import open_dataset, splits
from ssl_fast.data.datasets.image_text import ImageText

Config = ImageText.Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Six pictures of one grey level each, 10 * i in picture i; one file is no image."""
    image = pytest.importorskip("PIL.Image")
    for i in range(6):
        image.fromarray(np.full((4 + i, 8, 3), 10 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "junk.png").write_bytes(b"junk")
    return Config(path=str(tmp_path / "t.jsonl"), quarantine=str(tmp_path / "q.jsonl"))


ROWS = [
    ("3.png", "three"),
    ("0.png", "zero, grey"),
    ("junk.png", "junk"),
    ("3.png", "3"),
    ("5.png", ""),
    ("1.png", "one"),
]


def write(config: Config, rows: list[tuple[str, str]]) -> None:
    path = Path(config.path)
    if path.suffix == ".jsonl":
        lines = [json.dumps({"image": image, "text": text, "more": 1}) for image, text in rows]
        path.write_text("\n".join(lines) + "\n\n")
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(('"image"', '"text"'))] + [mark.join(f'"{cell}"' for cell in row) for row in rows]
        path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.tsv"])
def test_rows_of_one_image_are_one_sample(config: Config, tmp_path: Path, name: str) -> None:
    config = replace(config, path=str(tmp_path / name))
    write(config, ROWS)
    assert splits(config) == ("train", "all")
    dataset = open_dataset(config)
    assert dataset.names == ["3.png", "0.png", "1.png"] and dataset.labels is None
    assert dataset.captions == [["three", "3"], ["zero, grey"], ["one"]]
    assert [int(dataset.read(i)[0, 0, 0]) // 10 for i in range(3)] == [3, 0, 1]
    refused = dataset.quarantine.files()  # type: ignore[attr-defined]
    assert set(refused) == {"junk.png", "5.png"} and refused["5.png"] == "no caption"


def test_a_list_of_captions_is_several(config: Config) -> None:
    lines = [{"image": "1.png", "text": ["one", "uno"]}, {"image": "2.png", "text": "two"}]
    Path(config.path).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert open_dataset(config).captions == [["one", "uno"], ["two"]]


def test_the_fingerprint_tells_other_captions(config: Config) -> None:
    write(config, ROWS)
    first = open_dataset(config).fingerprint()
    assert open_dataset(config).fingerprint() == first
    write(config, [*ROWS[:-1], ("1.png", "another")])
    assert open_dataset(config).fingerprint() != first


def test_splits_by_column_and_by_share(config: Config) -> None:
    lines = [{"image": f"{i}.png", "text": str(i), "part": "test" if i > 3 else "train"} for i in range(6)]
    Path(config.path).write_text("".join(json.dumps(line) + "\n" for line in lines))
    named = replace(config, split_column="part")
    assert splits(named) == ("train", "test", "all")
    assert open_dataset(named, "test").captions == [["4"], ["5"]]
    shared = replace(config, test_fraction=0.5)
    parts = [open_dataset(shared, split) for split in ("train", "test")]
    captions = [texts for part in parts for texts in part.captions or ()]
    assert sorted(captions) == [[str(i)] for i in range(6)]
    for part in parts:
        assert part.names is not None and [f"{texts[0]}.png" for texts in part.captions or ()] == part.names
    lines.append({"image": "5.png", "text": "5", "part": "train"})
    Path(config.path).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"data.split_column: 5.png is in two splits"):
        open_dataset(named)


def test_errors_name_the_setting(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.path: .* cannot be read as JSON lines"):
        open_dataset(config)
    write(config, ROWS)
    with pytest.raises(ValueError, match=r"data.caption_column: .* no column 'caption' \(columns: image, text, more\)"):
        open_dataset(replace(config, caption_column="caption"))
    Path(config.path).write_text('{"image": "1.png", "text": "a"}\n{"image": \n')
    with pytest.raises(ValueError, match=r"cannot be read as JSON lines: line 2: "):
        open_dataset(config)
    Path(config.path).write_text("[1]\n")
    with pytest.raises(ValueError, match=r"line 1 is no object"):
        open_dataset(config)
    write(config, [("1.png", " ")])
    with pytest.raises(ValueError, match=r"data.caption_column: no image of .* has a caption"):
        open_dataset(config)


def test_real_pairs(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "imagenet-names-pairs.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    config = Config(path=str(tmp_path / "imagenet-names" / "pairs.jsonl"), quarantine=str(tmp_path / "q.jsonl"))
    dataset = open_dataset(config)
    assert len(dataset) == 1000 and dataset.captions is not None
    assert dataset.captions[0] == ["tench, Tinca tinca"] and len({texts[0] for texts in dataset.captions}) == 999
