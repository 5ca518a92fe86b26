"""What a data set is: numbered uint8 images, perhaps with labels."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.captions import Captions, Tokenize, chosen

Image = NDArray[np.uint8]  # [H, W, C]
Labels = NDArray[np.int64]  # [N], or [N, C] of 0 and 1 where a sample may have several classes

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = 0.459, 0.226  # luma of ImageNet's mean; mean of its deviations


class Dataset(ABC):
    """A split of a data set.

    Attributes:
        labels: [N] class numbers, -1 where a sample's class is not known; [N, C] of 0 and 1 where a sample may have
            several classes; or None.
        classes: the class names.
        channels: C of every image.
        mean, std: per channel, of values in [0, 1].
        arrays: [N, H, W, C] when every image is in memory and of one size, else None.
        names: file names, or None.
        sizes: (H, W) of each image, where that is known without reading it.
        scaled_decode: `fetch` takes a second argument: by how much each image may be decoded smaller.
        captions: texts of each sample, one or more, or None.
        tokenize: makes rows of tokens of texts; None where batches are to have none.
        videos: the samples are videos (`data/clips.py`): `fetch` takes a second argument, the clips wanted, and
            `read` gives the frame in the middle.
    """

    labels: Labels | None = None
    classes: Sequence[str] = ()
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    arrays: NDArray[np.uint8] | None = None  # [N, H, W, C]
    names: list[str] | None = None
    sizes: NDArray[np.int64] | None = None  # [N, 2]
    scaled_decode: bool = False
    captions: Captions | None = None
    tokenize: Tokenize | None = None
    videos: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, i: int) -> Image:
        """Image i, uint8 [H, W, C]."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the content does."""

    @property
    def faster_decoding(self) -> tuple[str, ...]:
        """Settings of its Config that would make decoding cheaper."""
        return ()

    @property
    def has_classes(self) -> bool:
        """Whether samples have one class each, and it is known of some."""
        return self.labels is not None and self.labels.ndim == 1 and bool((self.labels >= 0).any())

    def fetch(
        self,
        index: NDArray[np.int64],  # [N]
    ) -> tuple[NDArray[np.uint8] | list[Image], NDArray[np.int64]]:
        """The images of `index`, and the numbers of the samples really read (another where a file broke)."""
        if self.arrays is not None:
            return self.arrays[index], index
        return [self.read(int(i)) for i in index], index

    def extras(
        self,
        index: NDArray[np.int64],  # [N]
        seed: int,
        epoch: int,
    ) -> dict[str, Tensor]:
        """Rows for `Batch.extras`: the "tokens" [N, L] int64 of a caption of each sample, where `tokenize` is set."""
        if self.tokenize is None or self.captions is None:
            return {}
        return {"tokens": torch.from_numpy(self.tokenize(chosen(self.captions, index, seed, epoch)))}


class ArrayDataset(Dataset):
    """Images in memory (or memory-mapped), all of one size.

    Args:
        images: [N, H, W, C] uint8.
        labels: [N] or None.
        classes: class names; class numbers as text when empty.
        normalisation: (mean, std) per channel; measured from the images when None.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],  # [N, H, W, C]
        labels: Labels | None,  # [N]
        classes: Sequence[str],
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> None:
        self.arrays, self.labels, self.channels = images, labels, images.shape[3]
        num_classes = 0 if labels is None or not len(labels) else int(labels.max()) + 1
        self.classes = list(classes) or [str(number) for number in range(num_classes)]
        if num_classes > len(self.classes):
            raise ValueError(f"classes: expected at least {num_classes} names for the labels, got {len(self.classes)}")
        self.mean, self.std = normalisation or measure(images)

    def __len__(self) -> int:
        assert self.arrays is not None
        return len(self.arrays)

    def read(self, i: int) -> Image:
        """Image i."""
        assert self.arrays is not None
        return np.asarray(self.arrays[i])

    def fingerprint(self) -> str:
        """Of all pixels, labels and class names."""
        assert self.arrays is not None
        digest = hashlib.sha256(f"{self.arrays.shape} {self.classes}".encode())
        for begin in range(0, len(self.arrays), 4096):
            digest.update(np.ascontiguousarray(self.arrays[begin : begin + 4096]).data)
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


def measure(
    images: NDArray[np.uint8],  # [N, H, W, C]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of values in [0, 1]; of at most 50,000 evenly spaced images."""
    if not images.size:
        raise ValueError("images: expected at least one image to measure mean and std, got none")
    chosen = np.linspace(0, len(images) - 1, min(len(images), 50_000)).astype(np.int64)
    counts = np.zeros((images.shape[3], 256))
    for begin in range(0, len(chosen), 1000):
        pixels = images[chosen[begin : begin + 1000]].reshape(-1, images.shape[3])
        counts += [np.bincount(channel, minlength=256) for channel in pixels.T]
    shares, levels = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255.0
    mean = shares @ levels
    std = np.sqrt(np.maximum(shares @ levels**2 - mean**2, 0.0))
    return tuple(mean.round(4).tolist()), tuple(np.maximum(std, 1e-3).round(4).tolist())
