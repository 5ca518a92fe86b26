"""The decoded cache: the same pixels, made once, by one of several processes, again when a file changes."""

import logging
import multiprocessing
import os
import pickle
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ssl_fast.data import decoded
from ssl_fast.data.datasets import open_dataset
from ssl_fast.data.datasets.image_folder import ImageFolder
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View


@pytest.fixture
def config(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(12):
        pixels = random.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02}.jpg")
    return ImageFolder.Config(root=str(tmp_path / "images"), test_fraction=0.0, decoded_cache=True)


def makings(caplog):
    return sum("decoding 12 images into" in record.message for record in caplog.records)


def test_same_pixels_and_made_once(config, caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    plain, first = open_dataset(replace(config, decoded_cache=False)), open_dataset(config)
    monkeypatch.setattr(ImageFolder, "_decode", lambda *_: pytest.fail("a file was decoded again"))
    cached = pickle.loads(pickle.dumps(open_dataset(config)))
    assert first.faster_decoding == () and plain.faster_decoding == ("decoded_cache", "scaled_decode")
    assert makings(caplog) == 1 and cached.fingerprint() == first.fingerprint() == plain.fingerprint()
    monkeypatch.undo()
    for i in range(12):
        pixels = cached.read(i)
        assert np.array_equal(pixels, plain.read(i))
        pixels[:] = 0  # a copy on write: the file stays
        assert np.array_equal(first.read(i), plain.read(i))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_and_without(config, workers):
    def batches(config):
        options = {"batch_size": 5, "seed": 1, "shuffle": True, "drop_last": False}
        source = Loader(open_dataset(config), [View(size=16)], LoaderConfig("torchvision", workers), **options)
        yield from source.epoch(2)
        source.close()

    for ours, theirs in zip(batches(config), batches(replace(config, decoded_cache=False)), strict=True):
        assert np.array_equal(ours.index, theirs.index) and np.array_equal(ours.views[0], theirs.views[0])


def test_it_is_made_again_when_a_file_changes_or_the_cache_is_damaged(config, caplog, own_cache, tmp_path):
    caplog.set_level(logging.WARNING)
    open_dataset(config)
    (pixels,) = own_cache.glob("decoded-*/pixels")
    with open(pixels, "ab") as file:
        file.write(b"x")
    open_dataset(config)
    assert makings(caplog) == 2 and len(list(own_cache.glob("decoded-*/pixels"))) == 1
    Image.fromarray(np.full((50, 50, 3), 77, np.uint8)).save(tmp_path / "images" / "03.jpg")
    assert (open_dataset(config).read(3) == 77).all()
    assert makings(caplog) == 3


def test_a_full_disk_is_said_before_anything_is_written(config, monkeypatch):
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(
        ValueError, match=r"data.decoded_cache: needs .* GB in .* are free: set SSL_FAST_CACHE to a folder"
    ):
        open_dataset(config)
    monkeypatch.undo()
    assert shutil.disk_usage("/").free > 0 and len(open_dataset(config)) == 12


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(config, monkeypatch, own_cache):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded.os, "fsync", full)
    with pytest.raises(ValueError, match=r"data.decoded_cache: .*No space left on device; set SSL_FAST_CACHE"):
        open_dataset(config)
    assert not list(own_cache.glob("decoded-*/pixels"))


def test_both_fast_ways_at_once_are_refused(config):
    with pytest.raises(ValueError, match=r"data.scaled_decode: expected false with data.decoded_cache=true"):
        open_dataset(replace(config, scaled_decode=True))


def test_a_file_that_breaks_while_it_is_made_is_replaced_and_recorded(config, monkeypatch, tmp_path):
    from ssl_fast.data.bands import UnreadableError

    whole = ImageFolder._decode

    def broken(self, i):
        if i == 4:
            raise UnreadableError("gone")
        return whole(self, i)

    monkeypatch.setattr(ImageFolder, "_decode", broken)
    dataset = open_dataset(replace(config, quarantine=str(tmp_path / "q.jsonl")))
    images, found = dataset.fetch(np.array([3, 4]))
    assert found.tolist() == [3, 5] and np.array_equal(images[1], whole(dataset, 5))
    assert dataset.quarantine.files() == {"04.jpg": "it could not be decoded when the cache was made"}


def make(config, barrier, results):
    handler = logging.Handler()
    handler.emit = lambda record: results.put(("made", os.getpid())) if "decoding" in record.getMessage() else None
    logging.getLogger("ssl_fast.data.decoded").addHandler(handler)
    barrier.wait(30)
    dataset = open_dataset(config)
    results.put(("sum", int(sum(dataset.read(i).sum(dtype=np.int64) for i in range(len(dataset))))))


def test_of_several_ranks_that_open_it_at_once_one_makes_it(config):
    plain = open_dataset(replace(config, decoded_cache=False))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    ranks = [context.Process(target=make, args=(config, barrier, results)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    found = [results.get(timeout=60) for _ in range(3)]
    for rank in ranks:
        rank.join(30)
        assert rank.exitcode == 0
    assert [word for word, _ in found].count("made") == 1
    assert {number for word, number in found if word == "sum"} == {
        int(sum(plain.read(i).sum(dtype=np.int64) for i in range(len(plain))))
    }
