"""Tables of image files: order, labels, splits, and rows whose file is no image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssl_fast.data.datasets import open_dataset, splits
from ssl_fast.data.datasets.image_csv import ImageCSV

Config = ImageCSV.Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Six pictures of one grey level each; level 10 * i in picture i."""
    image = pytest.importorskip("PIL.Image")
    for i in range(6):
        image.fromarray(np.full((4 + i, 8, 3), 10 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "junk.png").write_bytes(b"junk")
    rows = ["3.png,b,train", "0.png,a,train", "junk.png,a,train", "5.png,b,test", "1.png,c,val", "no.png,c,test"]
    rows += [f"{tmp_path}/4.png,a,test"]
    (tmp_path / "t.csv").write_text("\ufefffile,kind,part\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return Config(path=str(tmp_path / "t.csv"), column="file", quarantine=str(tmp_path / "q.jsonl"))


def levels(config: Config, split: str) -> list[int]:
    dataset = open_dataset(config, split)
    return [int(dataset.read(i)[0, 0, 0]) // 10 for i in range(len(dataset))]


def test_rows_in_the_tables_order_without_the_files_that_are_no_images(config: Config) -> None:
    assert splits(config) == ("train", "all")
    assert levels(config, "train") == levels(config, "all") == [3, 0, 5, 1, 4]
    dataset = open_dataset(config, "all")
    assert set(dataset.quarantine.files()) == {"junk.png", "no.png"}  # type: ignore[attr-defined]
    assert dataset.labels is None and dataset.names is not None
    assert dataset.names[:2] == ["3.png", "0.png"]


def test_labels_and_splits(config: Config) -> None:
    config = replace(config, label_column="kind", split_column="part")
    assert splits(config) == ("train", "val", "test", "all")
    found = {split: (levels(config, split), open_dataset(config, split)) for split in splits(config)}
    assert {split: order for split, (order, _) in found.items()} == {
        "train": [3, 0],
        "val": [1],
        "test": [5, 4],
        "all": [3, 0, 5, 1, 4],
    }
    assert all(dataset.classes == ["a", "b", "c"] for _, dataset in found.values())
    assert found["val"][1].labels is not None and found["val"][1].labels.tolist() == [2]
    assert found["test"][1].labels is not None and found["test"][1].labels.tolist() == [1, 0]


def test_a_file_that_breaks_later_is_replaced_and_recorded(config: Config, tmp_path: Path) -> None:
    dataset = open_dataset(replace(config, color=False), "all")
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    images, read = dataset.fetch(np.array([1]))
    assert read.tolist() == [2]
    assert images[0].shape == (9, 8, 1) and images[0][0, 0, 0] == 50
    assert "0.png" in dataset.quarantine.files()  # type: ignore[attr-defined]


def test_errors_name_the_setting(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.path: expected a CSV file"):
        open_dataset(Config(), "all")
    with pytest.raises(ValueError, match=r"data.path: .* cannot be read as CSV"):
        open_dataset(replace(config, path=str(tmp_path / "none.csv")), "all")
    with pytest.raises(ValueError, match=r"data.column: .* has no column 'path' \(columns: file, kind, part\)"):
        open_dataset(replace(config, column="path"), "all")
    with pytest.raises(ValueError, match=r"data.split_column: expected train, val or test"):
        open_dataset(replace(config, split_column="kind"), "all")
    (tmp_path / "empty.csv").write_text("file\n")
    with pytest.raises(ValueError, match=r"lists no images"):
        open_dataset(replace(config, path=str(tmp_path / "empty.csv")), "all")
