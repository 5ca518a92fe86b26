import zipfile

import numpy as np
import pytest

from ssl_fast.data.datasets import dataset_class, names, open_dataset, splits
from ssl_fast.data.datasets.arrays import Arrays
from ssl_fast.data.datasets.cifar10 import CIFAR10


@pytest.fixture
def columns():
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (100, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(100) % 5,
        "x_test": random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(20) % 5,
        "classes": np.array(list("abcde")),
    }


@pytest.fixture
def config(tmp_path):
    def save(columns, compress=False, **options):
        (np.savez_compressed if compress else np.savez)(tmp_path / "set.npz", **columns)
        return Arrays.Config(path=str(tmp_path / "set.npz"), **options)

    return save


@pytest.mark.parametrize("compress", [False, True])
def test_the_whole_file(columns, config, compress):
    settings = config(columns, compress)
    train, test = open_dataset(settings), open_dataset(settings, "test")
    assert np.array_equal(train.arrays, columns["x_train"]) and np.array_equal(train.labels, columns["y_train"])
    assert np.array_equal(test.read(3), columns["x_test"][3]) and test.classes == list("abcde")
    assert isinstance(train.arrays, np.memmap) != compress
    assert test.mean == train.mean
    np.testing.assert_allclose(train.mean, columns["x_train"].mean(axis=(0, 1, 2)) / 255, atol=1e-4)
    np.testing.assert_allclose(train.std, columns["x_train"].std(axis=(0, 1, 2)) / 255, atol=1e-4)
    images, found = train.fetch(np.array([5, 1]))
    assert np.array_equal(images, columns["x_train"][[5, 1]]) and found.tolist() == [5, 1]


def test_fortran_order_is_mapped_right(columns, config):
    columns["x_train"] = np.asfortranarray(columns["x_train"])
    assert np.array_equal(open_dataset(config(columns)).arrays, columns["x_train"])


def test_grey_images_without_labels_or_test_set(columns, config):
    settings = config({"x_train": columns["x_train"][..., 0]})
    dataset = open_dataset(settings)
    assert dataset.arrays.shape == (100, 8, 8, 1) and dataset.channels == 1
    assert dataset.labels is None and dataset.classes == [] and splits(settings) == ("train",)


def test_validation_split_is_stratified_and_seeded(columns, config):
    settings = config(columns, val_fraction=0.2)
    train, val = open_dataset(settings), open_dataset(settings, "val")
    assert np.array_equal(np.bincount(val.labels), np.full(5, 4)) and len(train) == 80
    pixels = {image.tobytes() for image in train.arrays} | {image.tobytes() for image in val.arrays}
    assert len(pixels) == 100
    assert val.fingerprint() == open_dataset(settings, "val").fingerprint()
    other = open_dataset(config(columns, val_fraction=0.2, split_seed=1), "val")
    assert val.fingerprint() != other.fingerprint()
    assert val.mean == train.mean


def test_folds_cover_everything_once(columns, config):
    held = []
    for fold in range(5):
        settings = config(columns, fold=fold, num_folds=5)
        train, val = open_dataset(settings), open_dataset(settings, "val")
        assert len(train) == 80 and np.array_equal(np.bincount(val.labels), np.full(5, 4))
        held += [image.tobytes() for image in val.arrays]
    assert len(set(held)) == 100


def test_limits(columns, config):
    settings = config(columns, limit=30, limit_test=7, val_fraction=0.1)
    train, val, test = (open_dataset(settings, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (30, 10, 7)
    assert len(set(train.labels)) == 5  # a seeded shuffle, not the file's first
    longer = open_dataset(config(columns, limit=31, val_fraction=0.1))
    assert {image.tobytes() for image in train.arrays} < {image.tobytes() for image in longer.arrays}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": None}, "data.path: expected an array x_train, the file has classes, x_test, y_test, y_train"),
        ({"x_train": np.zeros((100, 8, 8, 3))}, r"x_train: expected uint8 .* got float64 \[100, 8, 8, 3\]"),
        ({"x_train": np.zeros((100, 8), np.uint8)}, r"x_train: expected uint8 .* got uint8 \[100, 8\]"),
        ({"y_train": np.zeros(99, int)}, r"y_train: expected 100 class numbers from 0 up, got int64 \[99\]"),
        ({"y_train": np.zeros(100)}, "y_train: expected 100 class numbers from 0 up, got float64"),
        ({"y_train": np.full(100, -1)}, "y_train: expected 100 class numbers from 0 up"),
        ({"y_train": np.full(100, 5)}, "classes: expected at least 6 names for the labels, got 5"),
        ({"x_train": np.array([object()])}, "not a readable .npz of plain arrays: .*objects"),
        ({"x_train": np.zeros((0, 8, 8, 3), np.uint8), "y_train": np.zeros(0, int)}, "no images in the split 'train'"),
    ],
)
def test_wrong_contents_are_named(columns, config, change, message):
    columns = {name: array for name, array in (columns | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        open_dataset(config(columns))


def test_missing_and_damaged_files(tmp_path, columns, config):
    with pytest.raises(ValueError, match=r"^data.path: no file missing.npz$"):
        open_dataset(Arrays.Config(path="missing.npz"))
    with pytest.raises(ValueError, match=r"data.path: expected a .npz file"):
        open_dataset(Arrays.Config())
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match=r"is not a readable .npz"):
        open_dataset(Arrays.Config(path=str(tmp_path / "text.npz")))
    settings = config(columns)
    content = (tmp_path / "set.npz").read_bytes()
    for cut in range(0, len(content), 997):
        (tmp_path / "set.npz").write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"data\.path"):
            open_dataset(settings)


def test_a_member_shorter_than_its_header_says_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        np.save(tmp_path / "x.npy", np.zeros((4, 8, 8, 3), np.uint8))
        archive.writestr("x_train.npy", (tmp_path / "x.npy").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"x_train.npy is 895 bytes, its header says 896"):
        open_dataset(Arrays.Config(path=str(tmp_path / "set.npz")))


@pytest.mark.parametrize(
    ("options", "split", "message"),
    [
        ({}, "val", "split: arrays has train, test here, got 'val'; set val_fraction or num_folds"),
        ({"val_fraction": 1.0}, "val", r"expected a number in \[0, 1\), got 1.0"),
        ({"num_folds": 3, "fold": 3}, "val", "expected 0 <= fold < num_folds"),
        ({"limit": -1}, "train", "limit: expected 0"),
    ],
)
def test_wrong_splits_are_named(columns, config, options, split, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(config(columns, **options), split)


def test_folds_need_labels(columns, config):
    with pytest.raises(ValueError, match=r"num_folds: folds need labels"):
        open_dataset(config({"x_train": columns["x_train"]}, num_folds=2), "val")


def test_the_list_of_data_sets():
    assert {"arrays", "cifar10", "image_folder", "photo_patches"} <= set(names())
    assert all(dataset_class(name).Config().name == name for name in names())
    with pytest.raises(ValueError, match=r"data: expected one of arrays, cifar10, .*, got 'mnist'"):
        dataset_class("mnist")


def test_configs_are_structured_configs():
    from omegaconf import OmegaConf

    for name in names():
        node = OmegaConf.structured(dataset_class(name).Config)
        assert node.name == name and OmegaConf.to_object(node) == dataset_class(name).Config()


def test_cifar10_without_a_download_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"data.root: no CIFAR-10 in") as caught:
        open_dataset(CIFAR10.Config(root=str(tmp_path), download=False))
    assert "\n" not in str(caught.value)


def test_cifar10_from_torchvisions_files(tmp_path, monkeypatch):
    from torchvision import datasets

    class Source:
        def __init__(self, root, train, download):
            self.classes = [str(i) for i in range(10)]
            num = 500 if train else 100
            self.data = np.random.default_rng(train).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
            self.targets = [i % 10 for i in range(num)]

    monkeypatch.setattr(datasets, "CIFAR10", Source)
    settings = CIFAR10.Config(root=str(tmp_path), val_fraction=0.1)
    sizes = {split: len(open_dataset(settings, split)) for split in splits(settings)}
    assert sizes == {"train": 450, "val": 50, "test": 100}
    assert np.array_equal(np.bincount(open_dataset(settings, "val").labels), np.full(10, 5))
