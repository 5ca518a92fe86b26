import numpy as np
import pytest
from PIL import Image

from ssl_fast.data.datasets import open_dataset, photo_patches
from ssl_fast.data.datasets.photo_patches import PHOTOGRAPHS, PhotoPatches, _bands

SMALL = {"num_train": 160, "num_val": 32, "num_test": 48}


def test_sixteen_balanced_classes_in_disjoint_splits():
    train, val, test = (open_dataset(PhotoPatches.Config(**SMALL), split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (160, 32, 48) and len(train.classes) == 16
    assert train.arrays.shape == (160, 32, 32, 1) and train.channels == 1 and train.arrays.dtype == np.uint8
    assert np.array_equal(np.bincount(train.labels), np.full(16, 10))
    assert train.mean == test.mean and train.std == val.std
    np.testing.assert_allclose(train.mean[0], train.arrays.mean() / 255, atol=1e-4)
    np.testing.assert_allclose(train.std[0], train.arrays.std() / 255, atol=1e-4)


def test_no_pixel_is_seen_by_two_splits(monkeypatch):
    """Each photograph is painted with the number of the split that its columns belong to: no patch may show another."""
    levels = {"train": 10, "val": 100, "test": 200}
    real, position = Image.open, {file.name: i for i, file in enumerate(photo_patches._files())}

    def painted(file):
        size, picture = real(file).size, position[file.name]
        columns = np.zeros(size[0], dtype=np.uint8)
        for split, level in levels.items():
            for band in _bands(split, picture):
                columns[band * (size[0] // 4) : (band + 1) * (size[0] // 4)] = level
        return Image.fromarray(np.tile(columns, (size[1], 1)))

    monkeypatch.setattr(Image, "open", painted)
    patches = photo_patches.make(PhotoPatches.Config(num_train=960, num_val=960, num_test=960), photo_patches._files())
    for split, level in levels.items():
        assert (patches[split] == level).all(), split


def test_deterministic_cached_and_hash_checked(own_cache, monkeypatch):
    config = PhotoPatches.Config(**SMALL)
    first = open_dataset(config)
    (file,) = own_cache.glob("photo_patches-*.npz")
    monkeypatch.setattr(photo_patches, "make", lambda *_: pytest.fail("the cache was not used"))
    assert np.array_equal(open_dataset(config).arrays, first.arrays)
    monkeypatch.undo()
    monkeypatch.setenv("SSL_FAST_CACHE", str(own_cache))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert np.array_equal(open_dataset(config).arrays, first.arrays)  # the damage is seen, the patches are made again
    assert open_dataset(config).fingerprint() == first.fingerprint()
    other = open_dataset(PhotoPatches.Config(**SMALL, patch_seed=1))
    assert not np.array_equal(other.arrays, first.arrays) and other.fingerprint() != first.fingerprint()


def test_a_cache_that_cannot_be_written_is_passed_over(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSL_FAST_CACHE", str(tmp_path / "file"))
    assert len(open_dataset(PhotoPatches.Config(**SMALL))) == 160


def test_colour():
    dataset = open_dataset(PhotoPatches.Config(num_train=32, num_val=0, num_test=0, color=True))
    assert dataset.arrays.shape == (32, 32, 32, 3) and len(dataset.mean) == 3
    astronaut = dataset.arrays[dataset.labels == list(PHOTOGRAPHS).index("astronaut")]
    assert (astronaut.max(axis=3) != astronaut.min(axis=3)).any()


def test_errors():
    with pytest.raises(ValueError, match=r"crop_min, crop_max, size, num_train: expected"):
        open_dataset(PhotoPatches.Config(crop_min=90, crop_max=100))
    with pytest.raises(ValueError, match=r"split: photo_patches has train, test here, got 'val'"):
        open_dataset(PhotoPatches.Config(num_val=0), "val")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(photo_patches.PHOTOGRAPHS, "cat", ("no_such_package", "cat.png"))
    with pytest.raises(RuntimeError, match=r"needs cat.png of no_such_package: pip install ssl_fast\[recipes\]"):
        open_dataset(PhotoPatches.Config(**SMALL))
