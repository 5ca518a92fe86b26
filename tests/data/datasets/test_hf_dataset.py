"""Hugging Face data sets in local files: both layouts, splits, labels, and the message where the package is missing."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from ssl_fast.data.datasets import open_dataset, splits
from ssl_fast.data.datasets.hf_dataset import HFDataset


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="data=hf_dataset needs the package datasets: pip install datasets"):
        open_dataset(HFDataset.Config(path=str(tmp_path)))


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


def picture(level):
    return Image.fromarray(np.full((9, 12, 3), level, dtype=np.uint8))


def rows(datasets, first, num):
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=["x", "y", "z"])})
    numbers = range(first, first + num)
    return datasets.Dataset.from_dict(
        {"image": [picture(10 * i) for i in numbers], "kind": [i % 3 for i in numbers]}, features=features
    )


def levels(dataset):
    return [int(dataset.read(i)[0, 0, 0]) // 10 for i in range(len(dataset))]


@pytest.mark.parametrize("layout", ["disk", "parquet"])
def test_splits_images_and_labels(datasets, tmp_path, layout):
    parts = {"train": rows(datasets, 0, 6), "validation": rows(datasets, 6, 3)}
    if layout == "disk":
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    else:
        (tmp_path / "set").mkdir()
        for name, part in parts.items():
            part.to_parquet(str(tmp_path / "set" / f"{name}-00000-of-00001.parquet"))
    config = HFDataset.Config(path=str(tmp_path / "set"), label_column="kind")
    assert splits(config) == ("train", "val", "test", "all")
    train, val = open_dataset(config, "train"), open_dataset(config, "val")
    assert levels(train) == list(range(6)) and levels(val) == [6, 7, 8]
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2] and train.classes == ["x", "y", "z"]
    assert train.sizes.tolist() == [[9, 12]] * 6
    assert open_dataset(config, "train").fingerprint() == train.fingerprint() != val.fingerprint()


def test_a_hidden_or_missing_label_is_unknown(datasets, tmp_path):
    whole = rows(datasets, 0, 3).to_dict()
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.Value("string")})
    words = datasets.Dataset.from_dict({"image": whole["image"], "kind": ["b", None, "a"]}, features=features)
    for name, part in (("numbers", rows(datasets, 0, 3)), ("words", words)):
        if name == "numbers":
            part = datasets.Dataset.from_dict({**whole, "kind": [2, None, -1]}, features=part.features)
        part.save_to_disk(str(tmp_path / name))
    numbers = open_dataset(HFDataset.Config(path=str(tmp_path / "numbers"), label_column="kind"))
    assert numbers.labels.tolist() == [2, -1, -1] and numbers.has_classes
    found = open_dataset(HFDataset.Config(path=str(tmp_path / "words"), label_column="kind"))
    assert found.labels.tolist() == [1, -1, 0] and found.classes == ["a", "b"]


def test_a_pool_with_a_row_that_is_no_image(datasets, tmp_path):
    file = io.BytesIO()
    picture(30).save(file, "PNG")
    pool = datasets.Dataset.from_dict({"bytes": [file.getvalue(), b"junk", file.getvalue()], "kind": ["b", "a", "a"]})
    pool.save_to_disk(str(tmp_path / "set"))
    config = HFDataset.Config(path=str(tmp_path / "set"), column="bytes", label_column="kind", val_fraction=0.5)
    dataset = open_dataset(config, "all")
    assert levels(dataset) == [3, 3] and dataset.classes == ["a", "b"] and dataset.labels.tolist() == [1, 0]
    assert list(dataset.quarantine.files()) == ["train/000000001"]
    assert len(open_dataset(config, "val")) == 1


def test_captions(datasets, tmp_path):
    texts = [["a", "b", "c"], [["a", "b"], ["c", ""], ["d"]], ["a", None, "c"]]
    for i, column in enumerate(texts):
        table = rows(datasets, 0, 3).add_column("said", column)
        table.save_to_disk(str(tmp_path / str(i)))
        texts[i] = HFDataset.Config(path=str(tmp_path / str(i)), caption_column="said")
    assert open_dataset(texts[0]).captions == [["a"], ["b"], ["c"]]
    assert open_dataset(texts[1]).captions == [["a", "b"], ["c"], ["d"]]
    with pytest.raises(ValueError, match=r"data.caption_column: 1 rows have no text in column 'said'"):
        open_dataset(texts[2])


def test_errors_name_the_setting(datasets, tmp_path):
    with pytest.raises(ValueError, match=r"data.path: expected a folder of a Hugging Face data set, got ''"):
        open_dataset(HFDataset.Config())
    with pytest.raises(ValueError, match="neither a folder of save_to_disk nor parquet files"):
        open_dataset(HFDataset.Config(path=str(tmp_path)))
    rows(datasets, 0, 3).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match=r"data.column: .* has no column 'picture' \(columns: image, kind\)"):
        open_dataset(HFDataset.Config(path=str(tmp_path / "set"), column="picture"))
    with pytest.raises(ValueError, match=r"data.label_column: no column 'class' \(columns: image, kind\)"):
        open_dataset(HFDataset.Config(path=str(tmp_path / "set"), label_column="class"))
