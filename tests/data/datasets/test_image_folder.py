import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from ssl_fast.data.datasets import open_dataset, splits
from ssl_fast.data.datasets.image_folder import ImageFolder


def write(root, name, size=(8, 6), level=None):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels if level is None else np.full_like(pixels, level)).save(path)


def config(root, **options):
    return ImageFolder.Config(root=str(root), **options)


def test_class_folders_in_one_pool(tmp_path):
    for c in "abc":
        for i in range(20):
            write(tmp_path, f"{c}/{i:02}.png")
    settings = config(tmp_path, val_fraction=0.25, test_fraction=0.2)
    parts = {split: open_dataset(settings, split) for split in splits(settings)}
    assert {split: np.bincount(part.labels).tolist() for split, part in parts.items()} == {
        "train": [12] * 3, "val": [4] * 3, "test": [4] * 3, "all": [20] * 3
    }  # fmt: skip
    assert parts["train"].classes == ["a", "b", "c"]
    found = sorted(parts["train"].names + parts["val"].names + parts["test"].names)
    assert found == parts["all"].names and len(set(found)) == 60
    train = parts["train"]
    assert all(train.classes[train.labels[i]] == train.names[i][0] for i in range(len(train)))
    assert np.array_equal(train.read(0), np.asarray(Image.open(tmp_path / train.names[0])))


def test_folds(tmp_path):
    for c in "ab":
        for i in range(10):
            write(tmp_path, f"{c}/{i}.png")
    held = [open_dataset(config(tmp_path, test_fraction=0.0, num_folds=5, fold=f), "val").names for f in range(5)]
    assert sorted(name for names in held for name in names) == open_dataset(config(tmp_path), "all").names
    assert {len(names) for names in held} == {4}


def test_split_folders(tmp_path):
    for split, num in (("train", 6), ("val", 3), ("test", 2)):
        for c in ("cat", "dog"):
            for i in range(num):
                write(tmp_path, f"{split}/{c}/{i}.png")
    settings = config(tmp_path)
    assert [len(open_dataset(settings, split)) for split in splits(settings)] == [12, 6, 4, 22]
    assert open_dataset(settings, "val").names[0] == "val/cat/0.png"
    write(tmp_path, "test/bird/0.png")
    with pytest.raises(ValueError, match=r"class folder 'bird' is not among those of the training images"):
        open_dataset(settings, "test")


def test_val_serves_as_test_where_there_is_no_other(tmp_path):
    for name in ("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/1.png"):
        write(tmp_path, name)
    assert open_dataset(config(tmp_path), "test").names == open_dataset(config(tmp_path), "val").names


def test_flat_and_nested_folders_have_no_labels(tmp_path):
    for name in ("0.png", "deep/er/1.png", "deep/2.JPG"):
        write(tmp_path, name)
    (tmp_path / "notes.txt").write_text("no image")
    dataset = open_dataset(config(tmp_path), "all")
    assert dataset.names == ["0.png", "deep/2.JPG", "deep/er/1.png"]
    assert dataset.labels is None and dataset.classes == []


def test_labels_can_be_ignored(tmp_path):
    for name in ("a/0.png", "b/0.png"):
        write(tmp_path, name)
    assert open_dataset(config(tmp_path), "all").labels.tolist() == [0, 1]
    assert open_dataset(config(tmp_path, labelled=False), "all").labels is None


def test_bad_files_are_left_out_recorded_and_counted(tmp_path, own_cache, caplog):
    images, record = tmp_path / "images", tmp_path / "quarantine.jsonl"
    for i in range(4):
        write(images, f"{i}.png")
    write(images, "large.png", size=(50, 50))
    (images / "html.jpg").write_text("<html>")
    (images / "empty.png").write_bytes(b"")
    (images / "cut.png").write_bytes((images / "1.png").read_bytes()[:-30])
    (images / "link.png").symlink_to(images / "gone.png")
    (images / "loop.png").symlink_to(images / "loop.png")
    os.mkfifo(images / "pipe.png")
    settings = config(images, max_pixels=2400, quarantine=str(record))
    dataset = open_dataset(settings, "all")
    assert dataset.names == [f"{i}.png" for i in range(4)]
    entries = [json.loads(line) for line in record.read_text().splitlines()]
    assert sorted(entry["path"] for entry in entries) == [
        "cut.png", "empty.png", "html.jpg", "large.png", "link.png", "loop.png", "pipe.png"
    ]  # fmt: skip
    assert all(entry["reason"] for entry in entries) and len(dataset.quarantine) == 7
    assert "7 of 11 image files cannot be used and are left out" in caplog.text
    assert len(open_dataset(settings, "all").quarantine) == 7  # opened again: no line twice
    assert len(record.read_text().splitlines()) == 7


def test_the_scan_is_cached_and_sees_changes(tmp_path, monkeypatch):
    from ssl_fast.data import scan

    for i in range(3):
        write(tmp_path, f"{i}.png")
    first = open_dataset(config(tmp_path), "all")
    monkeypatch.setattr(scan, "_look_at_all", lambda *_: pytest.fail("scanned again"))
    assert open_dataset(config(tmp_path), "all").fingerprint() == first.fingerprint()
    monkeypatch.undo()
    (tmp_path / "1.png").write_bytes(b"broken")
    assert open_dataset(config(tmp_path), "all").names == ["0.png", "2.png"]


def test_a_header_scan_leaves_damage_to_the_reader(tmp_path):
    for i in range(3):
        write(tmp_path, f"{i}.png", size=(40, 40))
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[: len(content) // 2])
    dataset = open_dataset(config(tmp_path, scan="header"), "all")
    assert len(dataset) == 3 and dataset.sizes.tolist() == [[40, 40]] * 3
    images, found = dataset.fetch(np.array([0, 1, 2]))
    assert found.tolist() == [0, 2, 2] and np.array_equal(images[1], images[2])
    assert list(dataset.quarantine.files()) == ["1.png"]


def test_grey(tmp_path):
    write(tmp_path, "0.png", level=77)
    dataset = open_dataset(config(tmp_path, color=False), "all")
    assert dataset.channels == 1 and dataset.read(0).shape == (6, 8, 1) and (dataset.read(0) == 77).all()
    assert len(dataset.mean) == len(dataset.std) == 1


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"^data.root: no folder .*none$"):
        open_dataset(config(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"no images found under .* \(looked for .jpg, .jpeg, .png"):
        open_dataset(config(tmp_path))
    with pytest.raises(ValueError, match=r"data.root: expected a folder of images"):
        open_dataset(ImageFolder.Config())
    (tmp_path / "0.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"data.root: .* none of the 1 files can be decoded"):
        open_dataset(config(tmp_path))
    write(tmp_path, "1.png")
    with pytest.raises(ValueError, match=r"data.scan: expected 'full' or 'header', got 'fast'"):
        open_dataset(config(tmp_path, scan="fast"))


@pytest.mark.parametrize("pack", ["faces-orl", "photos-caltech7"])
def test_real_folders(shared_data, tmp_path, pack):
    with tarfile.open(shared_data / f"{pack}.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    settings = config(root, val_fraction=0.1)
    sizes = [len(open_dataset(settings, split)) for split in ("train", "val", "test", "all")]
    assert sum(sizes[:3]) == sizes[3] == {"faces-orl": 400, "photos-caltech7": 417}[pack]
    dataset = open_dataset(settings)
    assert len(dataset.classes) == {"faces-orl": 40, "photos-caltech7": 7}[pack]
    assert len(dataset.quarantine) == 0 and set(dataset.labels) == set(range(len(dataset.classes)))
