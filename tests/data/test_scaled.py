"""JPEGs decoded smaller: by how much, what it does to the views, and that it is a function of sizes and crops alone."""

import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_fast.data.datasets import open_dataset
from ssl_fast.data.datasets.image_folder import ImageFolder
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.scaled import on_smaller, shrinks
from ssl_fast.data.views import COLUMN, COLUMNS, View, draw

PLAIN = {"mean": (0.0,), "std": (1.0,)}


def boxes(*crops):
    table = torch.zeros(1, len(crops), len(COLUMNS))
    table[0, :, :4] = torch.tensor(crops, dtype=torch.float32)
    return table


@pytest.mark.parametrize(
    ("crops", "expected"),
    [
        ([(0, 0, 63, 200)], 1), ([(0, 0, 64, 200)], 2), ([(0, 0, 127, 128)], 2), ([(5, 5, 128, 128)], 4),
        ([(0, 0, 500, 256)], 8), ([(0, 0, 500, 500), (0, 0, 80, 80)], 2),
    ],
)  # fmt: skip
def test_every_crop_stays_twice_as_large_as_its_view(crops, expected):
    views = [View(size=16)] * len(crops)
    assert shrinks(boxes(*crops), views).tolist() == [expected]


def test_crops_move_to_whole_pixels_inside_the_smaller_picture():
    table = boxes((3, 1, 30, 50), (0, 0, 101, 67), (100, 66, 1, 1))
    moved = on_smaller(table, np.array([[101, 67]]), [np.zeros((51, 34, 3), np.uint8)])
    corner, extent = moved[0, :, :2], moved[0, :, 2:4]
    assert (moved == moved.round()).all() and (corner >= 0).all() and (extent >= 1).all()
    assert (corner + extent <= torch.tensor([51, 34])).all()
    assert moved[0, 1, :4].tolist() == [0, 0, 51, 34] and moved[0, 0, 2:4].tolist() == [15, 25]
    assert torch.equal(table[..., 4:], moved[..., 4:]) and COLUMN["width"] == 3


@pytest.fixture
def photographs(shared_data, tmp_path):
    """Photographs of 500 pixels, three times enlarged: large ones, without pixels that no lens has seen."""
    with tarfile.open(shared_data / "photos-hymenoptera.tar") as archive:
        members = [member for member in archive.getmembers() if member.name.endswith(".jpg")][:12]
        for i, member in enumerate(members):
            image = Image.open(archive.extractfile(member)).convert("RGB")
            image = image.resize((3 * image.width, 3 * image.height), Image.Resampling.BICUBIC)
            exif = Image.Exif()
            exif[0x0112] = 6 if i % 3 == 0 else 1
            image.save(tmp_path / f"{i:02}.jpg", quality=92, exif=exif)
    return ImageFolder.Config(root=str(tmp_path), test_fraction=0.0)


def test_views_of_smaller_pictures_are_near_those_of_whole_ones(photographs, capsys):
    scaled = open_dataset(replace(photographs, scaled_decode=True))
    whole = open_dataset(photographs)
    assert scaled.fingerprint() != whole.fingerprint()
    views = [View(size=96, crop_scale=(0.3, 1.0), flip=0.5, **PLAIN), View(size=64, crop="center", flip=0.0, **PLAIN)]
    options = {"batch_size": 6, "seed": 0, "shuffle": False, "drop_last": False}
    ours, theirs = (Loader(d, views, LoaderConfig("torchvision", 0), **options) for d in (scaled, whole))
    differences = []
    for one, other in zip(ours.epoch(0), theirs.epoch(0), strict=True):
        differences += [(a - b).abs().flatten(1) * 255 for a, b in zip(one.views, other.views, strict=True)]
    levels = torch.cat([difference.flatten() for difference in differences])
    with capsys.disabled():
        print(f"\nscaled decode: mean {levels.mean():.2f}, 99.9 % {levels.quantile(0.999):.1f}, max {levels.max():.0f}")
    assert 0 < levels.mean() < 2  # not the same pixels: that is why it is off by default
    table = draw(views, 0, 0, np.arange(len(whole)), whole.sizes)
    by = shrinks(table, views)
    assert by.max() >= 4  # or nothing was tested
    for i, image in enumerate(scaled.fetch(np.arange(len(scaled)), by)[0]):
        assert image.shape[:2] == tuple(-(-size // by[i]) for size in scaled.sizes[i])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_view_does_not_depend_on_batch_or_worker(photographs, workers):
    dataset = open_dataset(replace(photographs, scaled_decode=True))

    def by_sample(batch_size, workers):
        options = {"batch_size": batch_size, "seed": 0, "shuffle": True, "drop_last": False}
        source = Loader(dataset, [View(size=64), View(size=32)], LoaderConfig("torchvision", workers), **options)
        found = {
            int(i): [v[n].numpy().tobytes() for v in b.views] for b in source.epoch(1) for n, i in enumerate(b.index)
        }
        source.close()
        return found

    assert by_sample(5, workers) == by_sample(12, 0)


def test_a_broken_file_is_replaced_by_a_whole_decode_of_the_next(photographs, tmp_path):
    dataset = open_dataset(replace(photographs, scaled_decode=True, quarantine=str(tmp_path / "q.jsonl")))
    whole = dataset.read(4)
    (tmp_path / "03.jpg").write_bytes(b"junk")
    images, found = dataset.fetch(np.array([3]), np.array([8]))
    assert found.tolist() == [4] and np.array_equal(images[0], whole)
    options = {"batch_size": 4, "seed": 0, "shuffle": False, "drop_last": False}
    batch = next(Loader(dataset, [View(size=32)], LoaderConfig("torchvision", 0), **options).epoch(0))
    assert batch.index.tolist() == [0, 1, 2, 4] and batch.views[0].isfinite().all()
