"""Tables of image files: order, labels, splits, and rows whose file is no image."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_fast.data.captions import add_captions
from ssl_fast.data.datasets import labelled_dataset, open_dataset, splits
from ssl_fast.data.datasets.image_csv import ImageCSV
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View

Config = ImageCSV.Config
ONE_BATCH: Any = {"batch_size": 3, "seed": 0, "shuffle": False, "drop_last": False}


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


def rewritten(config: Config, name: str, tmp_path: Path) -> Config:
    """The same table as TSV or parquet."""
    lines = [line.split(",") for line in (tmp_path / "t.csv").read_text(encoding="utf-8-sig").splitlines()]
    if name.endswith(".tsv"):
        (tmp_path / name).write_text("".join("\t".join(cells) + "\n" for cells in lines))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = dict(zip(lines[0], zip(*lines[1:], strict=True), strict=True))
        parquet.write_table(
            pyarrow.table({k: list(v) for k, v in columns.items()} | {"other": list(range(7))}), tmp_path / name
        )
    return replace(config, path=str(tmp_path / name))


@pytest.mark.parametrize("name", ["t.tsv", "t.parquet"])
def test_other_tables_are_read_alike(config: Config, name: str, tmp_path: Path) -> None:
    config = replace(config, label_column="kind", split_column="part")
    other = rewritten(config, name, tmp_path)
    assert splits(other) == splits(config)
    for split in splits(config):
        ours, theirs = open_dataset(other, split), open_dataset(config, split)
        assert ours.names == theirs.names and ours.classes == theirs.classes
        assert ours.labels is not None and theirs.labels is not None and np.array_equal(ours.labels, theirs.labels)
    with pytest.raises(ValueError, match=r"data.label_column: .* has no column 'none' \(columns: file, kind, part"):
        open_dataset(replace(other, label_column="none"))


def test_damaged_and_missing_tables(config: Config, tmp_path: Path) -> None:
    for name in ("x.parquet", "x.tsv"):
        with pytest.raises(ValueError, match=r"data.path: .* cannot be read as (parquet|TSV)"):
            open_dataset(replace(config, path=str(tmp_path / name)))
    (tmp_path / "x.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"data.path: .* cannot be read as parquet"):
        open_dataset(replace(config, path=str(tmp_path / "x.parquet")))


def test_several_labels_in_a_cell_or_in_columns(config: Config, tmp_path: Path) -> None:
    rows = ["0.png,cat|dog,1,0", "1.png,,0,", "2.png,dog,0,1"]
    (tmp_path / "t.csv").write_text("file,kinds,cat,dog\n" + "\n".join(rows) + "\n")
    cell = open_dataset(replace(config, label_column="kinds", label_separator="|"))
    assert cell.classes == ["cat", "dog"]
    assert cell.labels is not None and cell.labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    columns = open_dataset(replace(config, label_column="dog, cat"))
    assert columns.classes == ["dog", "cat"]
    assert columns.labels is not None and columns.labels.tolist() == [[0, 1], [0, 0], [1, 0]]
    batch = next(Loader(columns, [View(size=4)], LoaderConfig("torchvision", 0), **ONE_BATCH).epoch(0))
    assert batch.labels is not None and batch.labels.tolist() == [[0, 1], [0, 0], [1, 0]]
    (tmp_path / "t.csv").write_text("file,kinds,cat,dog\n0.png,x,2,0\n")
    with pytest.raises(ValueError, match=r"data.label_column: expected 0 or 1 in column 'cat', got '2'"):
        open_dataset(replace(config, label_column="dog,cat"))


def test_a_row_without_a_label_has_an_unknown_class(config: Config, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,kind\n0.png,10\n1.png\n2.png,\n3.png,9\n")  # the second is too short
    config = replace(config, label_column="kind")
    dataset = labelled_dataset(config, "train")
    assert dataset.classes == ["9", "10"]  # numbers, sorted as numbers
    assert dataset.labels is not None and dataset.labels.tolist() == [1, -1, -1, 0]
    with pytest.raises(ValueError, match="data: expected a class for every sample of the train split, got 2 without"):
        labelled_dataset(config, "train", whole=True)
    with pytest.raises(ValueError, match=r"data.captions: expected a class for every sample, got 2 without"):
        add_captions(dataset, "classes", None)
    several = open_dataset(replace(config, label_separator="|"))
    assert several.labels is not None and several.labels.sum(1).tolist() == [1, 0, 0, 1]


def test_rows_without_a_split_column_are_divided(config: Config, tmp_path: Path) -> None:
    rows = [f"{i % 6}.png,{i % 2}" for i in range(40)]
    (tmp_path / "t.csv").write_text("file,kind\n" + "\n".join(rows) + "\n")
    config = replace(config, label_column="kind", test_fraction=0.25, num_folds=3, fold=1)
    assert splits(config) == ("train", "val", "test", "all")
    parts = [open_dataset(config, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [20, 10, 10]
    assert [np.bincount(part.labels).tolist() for part in parts] == [[10, 10], [5, 5], [5, 5]]  # type: ignore[arg-type]


def test_the_headers_are_looked_at_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_dataset(config)
    monkeypatch.setattr("ssl_fast.data.scan._look_at_all", lambda *_: pytest.fail("looked at again"))
    assert open_dataset(config).fingerprint() == first.fingerprint()
