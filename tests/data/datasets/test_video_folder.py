"""A folder of videos: files and folders of frames, classes, splits, what is left out and what replaces it."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_fast.data import scan_videos
from ssl_fast.data.clips import Clips
from ssl_fast.data.datasets import open_dataset, splits
from ssl_fast.data.datasets.video_folder import VideoFolder
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.view_presets import cvrl
from tests.videos import levels, shown, write

VIEWS = cvrl(size=16, frames=4, stride=2)


def config(root: Path, **options: Any) -> Any:
    return VideoFolder.Config(root=str(root), **{"test_fraction": 0.0, **options})


def frames(folder: Path, num: int = 8, size: tuple[int, int] = (20, 24), name: str = "{:03}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(levels(num, size)):
        Image.fromarray(pixels).save(folder / name.format(number))
    return folder


def test_folders_of_frames_are_videos(tmp_path: Path) -> None:
    for c in "ab":
        for i in range(3):
            frames(tmp_path / c / f"clip{i}", num=6 + i)
    (tmp_path / "a" / "notes.txt").write_text("no video")
    frames(tmp_path / "b" / ".hidden")  # a folder like any other
    dataset = open_dataset(config(tmp_path), "all")
    assert dataset.names == [f"a/clip{i}" for i in range(3)] + ["b/.hidden", *(f"b/clip{i}" for i in range(3))]
    assert dataset.lengths.tolist() == [6, 7, 8, 8, 6, 7, 8]
    assert dataset.classes == ["a", "b"] and dataset.labels.tolist() == [0] * 3 + [1] * 4
    assert shown(dataset.frames(2, np.array([7, 0, 3, 3]))) == [7, 0, 3, 3]
    assert shown(dataset.read(1)[None]) == [3]
    clips, found = dataset.fetch(np.array([1]), Clips(np.array([[0.0, 1.0]]), (3, 2), (2, 1)))
    assert found.tolist() == [1] and [shown(clip) for clip in clips[0]] == [[0, 2, 4], [5, 6]]


def test_numbers_are_ordered_by_value(tmp_path: Path) -> None:
    frames(tmp_path / "v", num=12, name="img_{}.png")
    assert shown(open_dataset(config(tmp_path), "all").frames(0, np.arange(12))) == list(range(12))


def test_splits(tmp_path: Path) -> None:
    for split, num in (("train", 4), ("test", 2)):
        for c in "ab":
            for i in range(num):
                frames(tmp_path / split / c / str(i), num=2)
    settings = config(tmp_path)
    assert splits(settings) == ("train", "test", "all")
    assert [len(open_dataset(settings, split)) for split in splits(settings)] == [8, 4, 12]
    assert open_dataset(settings, "test").names[0] == "test/a/0"
    frames(tmp_path / "test" / "c" / "0", num=2)
    with pytest.raises(ValueError, match="class folder 'c' is not among those of the training videos"):
        open_dataset(settings, "test")


def test_one_pool_is_divided(tmp_path: Path) -> None:
    for c in "ab":
        for i in range(10):
            frames(tmp_path / c / str(i), num=2, size=(4, 4))
    settings = config(tmp_path, test_fraction=0.2, val_fraction=0.25)
    parts = {split: open_dataset(settings, split) for split in splits(settings)}
    assert {split: np.bincount(part.labels).tolist() for split, part in parts.items()} == {
        "train": [6, 6], "val": [2, 2], "test": [2, 2], "all": [10, 10]
    }  # fmt: skip
    assert open_dataset(replace(settings, labelled=False), "all").labels is None
    test = parts["test"]
    assert [Path(name).name for name in test.names] and len(test.lengths) == 4


def test_bad_videos_are_left_out_recorded_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, record = tmp_path / "videos", tmp_path / "quarantine.jsonl"
    for i in range(3):
        frames(root / f"good{i}")
    (frames(root / "first broken") / "000.png").write_bytes(b"junk")
    (frames(root / "later broken") / "004.png").write_bytes(b"junk")
    Image.new("RGB", (9, 9)).save(frames(root / "sizes differ") / "005.png")
    settings = config(root, quarantine=str(record), scan="full")
    dataset = open_dataset(settings, "all")
    assert dataset.names == ["good0", "good1", "good2"]
    found = {entry["path"]: entry["reason"] for entry in map(json.loads, record.read_text().splitlines())}
    assert found.keys() == {"first broken", "later broken", "sizes differ"}
    assert found["later broken"].startswith("004.png: ")
    assert found["sizes differ"] == "005.png: 9 x 9 pixels, expected 24 x 20"
    assert "3 of 6 videos cannot be used and are left out" in caplog.text
    assert len(open_dataset(settings, "all").quarantine) == 3


def test_damage_that_the_scan_let_through_is_replaced(tmp_path: Path) -> None:
    for name in "abc":
        frames(tmp_path / name, num=9)
    (tmp_path / "b" / "004.png").write_bytes(b"junk")
    dataset = open_dataset(config(tmp_path, labelled=False), "all")
    assert len(dataset) == 3
    clips, found = dataset.fetch(np.arange(3), Clips(np.full((3, 1), 0.5), (3,), (1,)))
    assert found.tolist() == [0, 2, 2] and list(dataset.quarantine.files()) == ["b"]
    assert np.array_equal(clips[1][0], clips[2][0])
    for file in (tmp_path / "c").iterdir():  # frames vanish
        file.unlink()
    assert dataset.fetch(np.arange(3), Clips(np.full((3, 1), 0.5), (3,), (1,)))[1].tolist() == [0, 0, 0]


def test_the_scan_is_cached_and_sees_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        frames(tmp_path / name)
    first = open_dataset(config(tmp_path), "all")
    monkeypatch.setattr(scan_videos, "_look_at_all", lambda *_: pytest.fail("scanned again"))
    again = open_dataset(config(tmp_path), "all")
    assert again.fingerprint() == first.fingerprint() and again.lengths.tolist() == [8, 8]
    monkeypatch.undo()
    frames(tmp_path / "b", num=10)
    changed = open_dataset(config(tmp_path), "all")
    assert changed.fingerprint() != first.fingerprint() and changed.lengths.tolist() == [8, 10]


def test_grey(tmp_path: Path) -> None:
    frames(tmp_path / "a")
    dataset = open_dataset(config(tmp_path, color=False), "all")
    assert dataset.channels == len(dataset.mean) == 1 and dataset.frames(0, np.arange(2)).shape == (2, 20, 24, 1)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.root: expected a folder of videos"):
        open_dataset(VideoFolder.Config())
    with pytest.raises(ValueError, match=r"^data.root: no folder .*none$"):
        open_dataset(config(tmp_path / "none"))
    frames(tmp_path)  # images beside no video are no video
    with pytest.raises(ValueError, match=r"no videos found under .* \(looked for .mp4, .*, and folders of images\)"):
        open_dataset(config(tmp_path))
    with pytest.raises(ValueError, match=r"data.scan: expected 'full' or 'header', got 'fast'"):
        open_dataset(config(tmp_path, scan="fast"))
    (frames(tmp_path / "v") / "000.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match="none of the 1 videos can be decoded"):
        open_dataset(config(tmp_path))


def test_video_files_without_pyav_name_the_extra(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    code = f"""
import sys; sys.modules["av"] = None
from ssl_fast.data.datasets.video_folder import VideoFolder
VideoFolder(VideoFolder.Config(root={str(tmp_path)!r}), "all")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "ImportError: video files need PyAV: pip install ssl_fast[video]"


def test_files_and_folders_side_by_side(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    write(tmp_path / "a/1.mp4", levels(20), g="5", sc_threshold="1000000000")
    write(tmp_path / "b/1.mkv", levels(11), bf="2", sc_threshold="1000000000")
    frames(tmp_path / "b/2", num=7)
    Image.new("RGB", (8, 8)).save(tmp_path / "a/poster.jpg")  # beside a file: no frame
    (tmp_path / "b/3.mp4").write_bytes(b"no video")
    dataset = open_dataset(config(tmp_path), "all")
    assert dataset.names == ["a/1.mp4", "b/1.mkv", "b/2"] and dataset.lengths.tolist() == [20, 11, 7]
    assert list(dataset.quarantine.files()) == ["b/3.mp4"]
    for i, numbers in enumerate(([19, 6, 6], [10, 0], [6, 1])):
        assert shown(dataset.frames(i, np.array(numbers))) == numbers
    again = open_dataset(config(tmp_path), "all")  # from the cache
    assert shown(again.frames(1, np.array([9]))) == [9]


@pytest.fixture(scope="module")
def pack(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real clips, unpacked."""
    pytest.importorskip("av", reason="PyAV is not installed")
    if not (shared_data / "video-clips.tar").is_file():
        pytest.skip("video-clips.tar is not beside this checkout")
    folder = tmp_path_factory.mktemp("pack")
    with tarfile.open(shared_data / "video-clips.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder / "video"


def test_real_clips(pack: Path) -> None:
    dataset = open_dataset(config(pack, scan="full"), "all")
    lengths = {Path(name).stem: int(length) for name, length in zip(dataset.names, dataset.lengths, strict=True)}
    assert len(dataset) == 12 and len(dataset.quarantine) == 0
    assert {name: lengths[name] for name in ("bikes", "cockatoo", "newtonscradle", "realshort")} == {
        "bikes": 250, "cockatoo": 280, "newtonscradle": 36, "realshort": 36
    }  # fmt: skip
    assert dataset.read(dataset.names.index("clips/bikes.mp4")).shape == (272, 640, 3)


def test_real_frames_are_those_of_decoding_from_the_beginning(pack: Path) -> None:
    import av

    root = pack / "clips"
    dataset = open_dataset(config(root, labelled=False), "all")
    for name in ("bikes.mp4", "cockatoo.mp4", "realshort.mp4", "newtonscradle.gif"):
        i = dataset.names.index(name)
        with av.open(str(root / name)) as container:
            every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(every) == dataset.lengths[i]
        numbers = np.array([len(every) - 1, 31, 30, 29, len(every) // 2])
        for number, found in zip(numbers, dataset.frames(i, numbers), strict=True):
            assert np.array_equal(found, every[number]), (name, number)
            (alone,) = dataset.frames(i, np.array([number]))  # what was decoded before it must not matter
            assert np.array_equal(alone, found), (name, number)


def test_batches_of_real_clips_are_the_same_with_workers(pack: Path) -> None:
    dataset = open_dataset(config(pack / "frames"), "all")
    assert dataset.classes == ["jumping", "running"]

    def batches(workers: int) -> list[Any]:
        settings = LoaderConfig(engine="torchvision", workers=workers)
        loader = Loader(dataset, VIEWS, settings, batch_size=2, seed=0, shuffle=True, drop_last=True)
        found = list(loader.epoch(0))
        loader.close()
        return found

    for a, b in zip(batches(0), batches(2), strict=True):
        assert all((x == y).all() for x, y in zip(a.tensors(), b.tensors(), strict=True))
