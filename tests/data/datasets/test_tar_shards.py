"""Tar shards: samples, labels, splits, the cached index, broken images, and the order of an epoch."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_fast.data import shards
from ssl_fast.data.datasets import open_dataset, splits
from ssl_fast.data.datasets.tar_shards import TarShards
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View


def picture(level, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.full((9, 12, 3), level, dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def write(path: Path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def config(tmp_path):
    """Two shards of eight samples each, level 10 * i in sample i; one image is no image."""
    for shard in range(2):
        files = []
        for i in range(8 * shard, 8 * shard + 8):
            files += [(f"in/{i:03}.png", picture(10 * i)), (f"in/{i:03}.cls", str(i % 3).encode())]
            files += [(f"in/{i:03}.json", json.dumps({"label": "abc"[i % 3], "width": 12}).encode())]
            files += [(f"in/{i:03}.txt", f"text {i % 2}".encode())]
        if shard == 1:
            files += [("in/bad.jpg", b"junk"), ("in/bad.cls", b"0"), ("in/bad.json", b'{"label": "a"}')]
        write(tmp_path / f"s{shard}.tar", files)
    return TarShards.Config(root=str(tmp_path), quarantine=str(tmp_path / "q.jsonl"))


def levels(dataset):
    return [int(dataset.read(i)[0, 0, 0]) // 10 for i in range(len(dataset))]


def test_samples_labels_and_the_record_of_a_bad_one(config):
    dataset = open_dataset(config)
    assert splits(config) == ("train", "all")
    assert levels(dataset) == list(range(16)) and dataset.names[9] == "s1.tar/in/009"
    assert dataset.labels.tolist() == [i % 3 for i in range(16)] and dataset.classes == ["0", "1", "2"]
    assert list(dataset.quarantine.files()) == ["s1.tar/in/bad"]
    config.label = "json"
    assert open_dataset(config).classes == ["a", "b", "c"]
    config.label = "none"
    assert open_dataset(config).labels is None


def test_the_index_is_made_once_and_again_when_a_shard_changes(config, monkeypatch, tmp_path):
    first = open_dataset(config).fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_samples", lambda *_: pytest.fail("the shards were read again"))
        assert open_dataset(config).fingerprint() == first
    write(tmp_path / "s0.tar", [("x.png", picture(200)), ("x.cls", b"1")])
    changed = open_dataset(config)
    assert changed.fingerprint() != first and len(changed) == 9 and levels(changed)[0] == 20


def test_splits_by_fraction_and_by_folder(config, tmp_path):
    config.test_fraction, config.val_fraction = 0.25, 0.25
    parts = {split: levels(open_dataset(config, split)) for split in ("train", "val", "test")}
    assert sorted(level for part in parts.values() for level in part) == list(range(16)) and len(parts["test"]) == 4
    for i, split in enumerate(("train", "train", "val")):
        write(tmp_path / "in_parts" / split / f"{i}.tar", [("a.png", picture(10 * i)), ("a.cls", b"0")])
    foldered = TarShards.Config(root=str(tmp_path / "in_parts"))
    assert splits(foldered) == ("train", "val", "test", "all")
    assert levels(open_dataset(foldered, "train")) == [0, 1] and levels(open_dataset(foldered, "test")) == [2]


def test_an_epoch_is_that_of_any_data_set(config):
    dataset = open_dataset(config)
    options = {"batch_size": 4, "seed": 3, "shuffle": True, "drop_last": False}
    batches = []
    for workers in (0, 2):
        source = Loader(dataset, [View(size=8)], LoaderConfig("torchvision", workers, 2, "forkserver"), **options)
        batches.append(list(source.epoch(1)))
        source.close()
    for one, other in zip(*batches, strict=True):
        assert one.index.tolist() == other.index.tolist()
        assert np.array_equal(one.views[0], other.views[0]) and one.labels.tolist() == other.labels.tolist()
    assert np.concatenate([b.index for b in batches[0]]).tolist() == source.order(1).tolist()


def test_errors(config, tmp_path):
    with pytest.raises(ValueError, match=r"data.root: expected a folder of .tar shards"):
        open_dataset(TarShards.Config())
    config.label = "txt"
    with pytest.raises(ValueError, match=r"data.label: sample s1.tar/in/bad has no .txt, nor have 0 others"):
        open_dataset(config)
    config.label, config.label_key = "json", "kind"
    with pytest.raises(ValueError, match=r"data.label_key: no 'kind' in the .json of sample s0.tar/in/000"):
        open_dataset(config)
    config.label = "word"
    with pytest.raises(ValueError, match=r"data.label: expected 'auto', 'cls', 'json', 'txt' or 'none', got 'word'"):
        open_dataset(config)
    (tmp_path / "s2.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match=r"s2.tar is no readable tar archive"):
        open_dataset(config)
    write(tmp_path / "empty" / "a.tar", [("readme.md", b"x")])
    with pytest.raises(ValueError, match=r"no images in the 1 .tar files"):
        open_dataset(TarShards.Config(root=str(tmp_path / "empty")))


def test_captions(config, tmp_path):
    assert open_dataset(config).captions is None
    config.caption = "txt"
    dataset = open_dataset(config)
    assert dataset.captions == [[f"text {i % 2}"] for i in range(16)]  # the broken image had none, and needs none
    config.caption, config.caption_key = "json", "label"
    assert open_dataset(config).captions[:3] == [["a"], ["b"], ["c"]]
    config.caption_key = "said"
    with pytest.raises(ValueError, match=r"sample s0.tar/in/000 has no .json with 'said', nor have 15 others"):
        open_dataset(config)
    config.caption = "cls"
    with pytest.raises(ValueError, match=r"data.caption: expected 'txt', 'json' or '', got 'cls'"):
        open_dataset(config)
    several = TarShards.Config(root=str(tmp_path / "several"), caption="json", test_fraction=0.5)
    files = [
        [(f"{i}.png", picture(10 * i)), (f"{i}.json", f'{{"caption": ["{i}", "{i}!"]}}'.encode())] for i in range(4)
    ]
    write(tmp_path / "several" / "a.tar", [file for pair in files for file in pair])
    parts = [open_dataset(several, split) for split in ("train", "test")]
    assert all(part.captions == [[str(i), f"{i}!"] for i in levels(part)] for part in parts)
    assert sorted(levels(parts[0]) + levels(parts[1])) == list(range(4))
