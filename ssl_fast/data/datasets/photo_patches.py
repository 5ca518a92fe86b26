"""Patches of the photographs that scikit-image and scikit-learn carry in their wheels: real images without a download.

The class is the photograph. Each photograph is cut into four vertical bands (train, test, train, val, turned by one
place from picture to picture); a patch is cropped from one band before it is resized, so that no pixel, nor its
neighbourhood, is seen by two splits. Grey by default: most of the sixteen would be told apart by their colour alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.data.cache import cache_folder, load_arrays, save_arrays
from ssl_fast.data.dataset import ArrayDataset, measure
from ssl_fast.data.philox import uniforms

PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
    "moon": ("skimage", "data/moon.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
_BANDS = ("train", "test", "train", "val")
_FORMAT = 1  # part of the cache's key: raise it when the patches change


class PhotoPatches(ArrayDataset):
    """Patches of 16 photographs, equally many of each."""

    @dataclass
    class Config:
        """How many patches, and of what size.

        Args:
            num_train, num_val, num_test: patches of each split.
            size: side of a patch, pixels.
            crop_min, crop_max: side of the square it is resized from, pixels, uniform.
            color: three channels instead of one.
            patch_seed: seed of the places.
        """

        name: str = "photo_patches"
        num_train: int = 10_000
        num_val: int = 2_000
        num_test: int = 2_000
        size: int = 32
        crop_min: int = 40
        crop_max: int = 80
        color: bool = False
        patch_seed: int = 0

    def __init__(self, config: Any, split: str) -> None:
        patches = load_or_make(config)
        images = patches[split]
        labels = np.arange(len(images), dtype=np.int64) % len(PHOTOGRAPHS)
        super().__init__(images, labels, list(PHOTOGRAPHS), measure(patches["train"]))

    @staticmethod
    def splits(config: Any) -> tuple[str, ...]:
        """The splits with this config: those that have patches."""
        return tuple(split for split in ("train", "val", "test") if getattr(config, f"num_{split}"))


def load_or_make(config: Any) -> dict[str, NDArray[np.uint8]]:
    """The patches of all splits, from the user's cache or made now."""
    if not 1 <= config.crop_min <= config.crop_max <= 80 or config.size < 1 or config.num_train < 1:
        raise ValueError(
            f"crop_min, crop_max, size, num_train: expected 1 <= crop_min <= crop_max <= 80 and positive others, got "
            f"{config.crop_min}, {config.crop_max}, {config.size}, {config.num_train}"
        )
    files = _files()
    path = cache_folder() / f"photo_patches-{_key(config, files)}.npz"
    cached: Any = load_arrays(path)
    if cached is None:
        cached = make(config, files)
        save_arrays(path, cached)
    return {split: np.asarray(cached[split], dtype=np.uint8) for split in ("train", "val", "test")}


def _files() -> list[Path]:
    found = []
    for package, inside in PHOTOGRAPHS.values():
        spec = importlib.util.find_spec(package)
        path = Path(spec.submodule_search_locations[0]) / inside if spec and spec.submodule_search_locations else None
        if path is None or not path.is_file():
            raise RuntimeError(f"data=photo_patches needs {inside} of {package}: pip install ssl_fast[recipes]")
        found.append(path)
    return found


def _key(config: Any, files: list[Path]) -> str:
    numbers = [getattr(config, name) for name in PhotoPatches.Config.__dataclass_fields__]
    digest = hashlib.sha256(f"{_FORMAT} {numbers}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def make(config: Any, files: list[Path]) -> dict[str, NDArray[np.uint8]]:
    """Cuts the patches: {split: [N, size, size, C]}, photograph i % 16 for patch i."""
    channels = 3 if config.color else 1
    patches = {}
    for purpose, split in enumerate(("train", "val", "test")):
        num = getattr(config, f"num_{split}")
        numbers = uniforms(np.arange(num), (0, purpose), config.patch_seed, 4)
        patches[split] = np.empty((num, config.size, config.size, channels), dtype=np.uint8)
        for picture, file in enumerate(files):
            mine = slice(picture, num, len(files))
            patches[split][mine] = _cut(file, _bands(split, picture), numbers[mine], config)
    return patches


def _bands(split: str, picture: int) -> list[int]:
    return [band for band in range(len(_BANDS)) if _BANDS[(band + picture) % len(_BANDS)] == split]


def _cut(
    file: Path,
    bands: list[int],
    numbers: NDArray[np.float64],  # [n, 4] in [0, 1): side, band, row, column
    config: Any,
) -> NDArray[np.uint8]:  # [n, size, size, C]
    from PIL import Image

    image = Image.open(file).convert("RGB" if config.color else "L")
    width = image.width // len(_BANDS)
    patches = []
    for side, band, row, column in numbers:
        pixels = config.crop_min + int(side * (config.crop_max - config.crop_min + 1))
        left = bands[int(band * len(bands))] * width + int(column * (width - pixels + 1))
        top = int(row * (image.height - pixels + 1))
        # Cropped first: Pillow's own box argument would let the antialiasing filter see beyond the crop.
        crop = image.crop((left, top, left + pixels, top + pixels))
        patch = np.asarray(crop.resize((config.size, config.size), Image.Resampling.BILINEAR))
        patches.append(patch.reshape(config.size, config.size, -1))
    return np.stack(patches) if patches else np.empty((0, config.size, config.size, 1), dtype=np.uint8)
