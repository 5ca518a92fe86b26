"""Images of any number of channels, from files to views, and what is said of operations that need RGB."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_fast.data import engine_fused
from ssl_fast.data.datasets import open_dataset
from ssl_fast.data.datasets.image_folder import ImageFolder
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.view_presets import simclr
from ssl_fast.data.views import View

ENGINES = [
    "torchvision",
    pytest.param("fused", marks=pytest.mark.skipif(bool(engine_fused.unavailable()), reason="not built")),
]
OPTIONS = {"batch_size": 6, "seed": 0, "shuffle": False, "drop_last": False}


@pytest.fixture(params=[2, 5, 13])
def folder(request, tmp_path):
    """Six arrays of so many bands, of different sizes; band c of array i holds level 10 * i + c."""
    for i in range(6):
        bands = np.broadcast_to(10 * i + np.arange(request.param), (40 + i, 50, request.param)).astype(np.uint8)
        np.save(tmp_path / f"{i}.npy", bands)
    (tmp_path / "junk.npy").write_bytes(b"junk")
    Image.new("RGB", (8, 8)).save(tmp_path / "colour.png")  # of three channels
    return ImageFolder.Config(root=str(tmp_path), channels=request.param, test_fraction=0.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_crop_flip_blur_solarise_and_normalise(folder, engine):
    dataset = open_dataset(folder)
    assert len(dataset) == 6 and dataset.channels == folder.channels == len(dataset.mean)
    assert set(dataset.quarantine.files()) == {"junk.npy", "colour.png"}
    colours = {"brightness": 0.4, "contrast": 0.4, "jitter": 1.0}
    views = [
        View(size=16, blur=1.0, flip=0.5, mean=dataset.mean, std=dataset.std),
        View(size=12, solarize=0.5, mean=(0.5,), std=(0.5,), **colours),
    ]
    batch = next(Loader(dataset, views, LoaderConfig(engine, 0), **OPTIONS).epoch(0))
    assert [view.shape for view in batch.views] == [(6, folder.channels, 16, 16), (6, folder.channels, 12, 12)]
    levels = 255 * (batch.views[0] * 0.25 + 0.5)
    expected = 10.0 * torch.arange(6).view(-1, 1) + torch.arange(folder.channels)
    assert (levels - expected[:, :, None, None]).abs().max() < 0.01


@pytest.mark.parametrize("engine", ENGINES)
def test_operations_that_need_rgb_say_so(folder, engine):
    views = [View(**{**vars(view), "mean": (0.5,), "std": (0.5,)}) for view in simclr(size=16)]
    loader = Loader(open_dataset(folder), views, LoaderConfig(engine, 0), **OPTIONS)
    expected = r"saturation, hue, grayscale: expected images of 1 or 3 channels, got \d+; set the three to 0"
    with pytest.raises(ValueError, match=expected):
        next(loader.epoch(0))


def test_files_of_other_channels_are_refused(folder):
    folder.channels += 20
    with pytest.raises(
        ValueError, match=rf"can be decoded \({folder.channels - 20} channels, expected {folder.channels}\)"
    ):
        open_dataset(folder)
