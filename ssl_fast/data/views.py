"""What one augmented view is (`View`), what a batch is (`Batch`), and the table of random parameters (`draw`).

No engine is imported here: `draw` decides everything that is random, engines only apply the table.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.crops import NUM_UNIFORMS as NUM_CROP_UNIFORMS
from ssl_fast.data.crops import centred_boxes, random_boxes
from ssl_fast.data.philox import uniforms
from ssl_fast.data.policies import NUM_UNIFORMS as NUM_POLICY_UNIFORMS
from ssl_fast.data.policies import POLICIES, draw_policy

# The columns of the table, P = 21. The crop's box is in pixels of the source image; flip, jitter, grayscale, solarize
# are 0 or 1; order0..3 are the colour operations (0 brightness, 1 contrast, 2 saturation, 3 hue) in the order they are
# applied; blur is the Gaussian's sigma in output pixels, 0 for none; the last four are a policy's (policies.py).
COLUMNS = (
    "top", "left", "height", "width", "flip", "jitter", "brightness", "contrast", "saturation", "hue",
    "order0", "order1", "order2", "order3", "grayscale", "blur", "solarize",
    "operation0", "magnitude0", "operation1", "magnitude1",
)  # fmt: skip
_NUM_COLUMNS = len(COLUMNS) - 4  # without the policy's
COLUMN = {name: position for position, name in enumerate(COLUMNS)}

_ORDERS = np.array(list(itertools.permutations(range(4))), dtype=np.float64)  # [24, 4]
# Random numbers per (sample, view): the crop's, then flip, jitter, four factors, order, grayscale, blur, sigma,
# solarize; a policy's come after them.
_NUM_UNIFORMS = NUM_CROP_UNIFORMS + 11


@dataclass
class View:
    """One augmented view of an image: what the engines must make.

    Args:
        name: how the method calls it.
        kind: "image", or "clip" of a video: all its frames get one crop, flip and colour.
        size: side of the square output, pixels.
        crop: "random" (torchvision's RandomResizedCrop) or "center": the centred square of side
            min(H, W) * sqrt(crop_scale[1]), so that crop_scale[1] = 0.875 ** 2 is "resize 256, crop 224".
        crop_scale: range of the crop's share of the image's area.
        crop_ratio: range of width / height, log-uniform.
        interpolation: "bilinear" or "bicubic", antialiased.
        flip: probability of a horizontal flip.
        brightness, contrast, saturation, hue: strengths as in torchvision's ColorJitter (hue at most 0.5).
        jitter: probability that the colour jitter is applied.
        grayscale: probability of becoming grey (3 channels kept).
        blur: probability of a Gaussian blur, sigma uniform in blur_sigma (pixels).
        solarize: probability of inverting values >= solarize_threshold (of 1).
        policy: "autoaugment", "randaugment" or "trivialaugment" (`ssl_fast.data.policies`), after crop and flip and
            before the rest; "" for none. The torchvision engine alone has them.
        mean, std: normalisation per channel, of values in [0, 1].
        frames: T of a clip; 1 for an image.
        stride: from one frame of a clip to the next, in frames of the video.
        place: where in the video it is taken: "random"; "near", for two views: more often close to each other than far
            apart (`ssl_fast.data.clips`); "even": the views of this kind at equal distances, the first at the video's
            beginning, the last at its end, one alone in the middle.
        clips: for evaluation: so many clips at even places, whose features are averaged.

    Raises:
        ValueError: a field is out of its range.
    """

    name: str = "view"
    kind: str = "image"
    size: int = 224
    crop: str = "random"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: float = 0.5
    policy: str = ""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    frames: int = 1
    stride: int = 1
    place: str = "random"
    clips: int = 1

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "mean", "std"):
            setattr(self, name, tuple(float(value) for value in getattr(self, name)))
        self._check_words()
        self._check_ranges()
        self._check_normalisation()

    def _check_words(self) -> None:
        allowed = {
            "kind": ("image", "clip"),
            "crop": ("random", "center"),
            "interpolation": ("bilinear", "bicubic"),
            "place": ("random", "near", "even"),
        }
        for name, words in allowed.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name}: expected {' or '.join(map(repr, words))}, got {getattr(self, name)!r}")
        if self.policy and self.policy not in POLICIES:
            raise ValueError(f"policy: expected '' or {' or '.join(map(repr, POLICIES))}, got {self.policy!r}")
        if self.size < 1:
            raise ValueError(f"size: expected a positive number of pixels, got {self.size}")
        if min(self.frames, self.stride, self.clips) < 1:
            got = f"{self.frames}, {self.stride}, {self.clips}"
            raise ValueError(f"frames, stride, clips: expected positive numbers, got {got}")
        if self.kind == "image" and self.frames > 1:
            raise ValueError(f"frames: expected 1 for kind='image', got {self.frames}")
        if self.clips > 1 and self.place != "even":
            raise ValueError(f"clips: expected 1 unless place='even', got {self.clips} and place={self.place!r}")

    def _check_ranges(self) -> None:
        for name in ("flip", "jitter", "grayscale", "blur", "solarize", "solarize_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}")
        for name, high in (("brightness", np.inf), ("contrast", np.inf), ("saturation", np.inf), ("hue", 0.5)):
            if not 0.0 <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected a number in [0, {high}], got {getattr(self, name)}")
        for name, high in (("crop_scale", 1.0), ("crop_ratio", np.inf), ("blur_sigma", np.inf)):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0.0 < pair[0] <= pair[1] <= high:
                raise ValueError(f"{name}: expected (low, high) with 0 < low <= high <= {high}, got {pair}")

    def _check_normalisation(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean, std: expected one number per channel each, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise ValueError(f"std: expected positive numbers, got {self.std}")


@dataclass
class Batch:
    """What the loader yields and a method reads.

    Attributes:
        views: the views in declared order, each [N, C, H, W], normalised float, channels_last in memory; clips are
            [N, C, T, H, W] (torchvision's order), channels_last_3d.
        labels: [N] int64 or None.
        index: [N] int64, the samples' numbers in their data set.
        extras: further tensors, first dimension N.
        seconds: what it cost to make, by part ("decode", "augment"), where that is known.
    """

    views: tuple[Tensor, ...]  # each [N, C, H, W] or [N, C, T, H, W]
    labels: Tensor | None  # [N]
    index: Tensor  # [N]
    extras: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str, **kw: Any) -> Batch:
        """The same batch on `device`; keywords (dtype aside) go to `Tensor.to`, e.g. non_blocking=True."""
        return self._map(lambda tensor: tensor.to(device, **kw))

    def pinned(self) -> Batch:
        """The same batch in pinned memory, from where copies to a GPU need not be waited for."""
        return self._map(lambda tensor: tensor.pin_memory())

    def tensors(self) -> list[Tensor]:
        """All its tensors."""
        labels = [] if self.labels is None else [self.labels]
        return [*self.views, *labels, self.index, *self.extras.values()]

    def slice(self, begin: int, end: int) -> Batch:
        """Rows begin .. end - 1, sharing memory."""
        return self._map(lambda tensor: tensor[begin:end])

    def _map(self, function: Any) -> Batch:
        labels = None if self.labels is None else function(self.labels)
        extras = {name: function(tensor) for name, tensor in self.extras.items()}
        return Batch(tuple(function(view) for view in self.views), labels, function(self.index), extras, self.seconds)


def draw(
    views: Sequence[View],  # V
    seed: int,
    epoch: int,
    index: Any,  # [N] sample numbers
    sizes: Any,  # [N, 2] (H, W) of the source images, pixels
) -> Tensor:  # [N, V, P] float32, columns COLUMNS
    """The parameters of every view of every sample: a function of (seed, epoch, sample, view) and the image's size.

    The same sample gets the same view whatever the batch, the worker, the rank or the engine. Distributions are those
    of torchvision's RandomResizedCrop, ColorJitter, GaussianBlur and RandomSolarize.

    Raises:
        ValueError: an index or size is negative, or the shapes disagree.
    """
    index, sizes = np.asarray(index, dtype=np.int64), np.asarray(sizes, dtype=np.float64)
    if index.ndim != 1 or sizes.shape != (len(index), 2):
        raise ValueError(f"sizes: expected shape [{len(index)}, 2] for index [N], got {list(sizes.shape)}")
    if len(index) and (index.min() < 0 or sizes.min() < 1):
        raise ValueError("index, sizes: expected index >= 0 and sizes >= 1 pixel")
    table = np.empty((len(index), len(views), len(COLUMNS)), dtype=np.float32)
    for position, view in enumerate(views):
        numbers = uniforms(index, (epoch, position), seed, _NUM_UNIFORMS + NUM_POLICY_UNIFORMS * bool(view.policy))
        table[:, position, :4] = _boxes(view, numbers, sizes)
        _colours(view, numbers[:, NUM_CROP_UNIFORMS:_NUM_UNIFORMS].T, table[:, position, 4:_NUM_COLUMNS])
        policy = draw_policy(view.policy, numbers[:, _NUM_UNIFORMS:], view.size) if view.policy else 0.0
        table[:, position, _NUM_COLUMNS:] = policy
    return torch.from_numpy(table)


def _boxes(
    view: View,
    numbers: NDArray[np.float64],  # [N, 33] in [0, 1)
    sizes: NDArray[np.float64],  # [N, 2]
) -> NDArray[np.float64]:  # [N, 4]
    if view.crop == "center":
        return centred_boxes(view.crop_scale, sizes)
    return random_boxes(view.crop_scale, view.crop_ratio, numbers, sizes)


def _colours(
    view: View,
    numbers: NDArray[np.float64],  # [11, N] in [0, 1)
    out: NDArray[np.float32],  # [N, 13] flip .. solarize
) -> None:
    def factor(strength: float, number: NDArray[np.float64]) -> NDArray[np.float64]:
        low = max(0.0, 1.0 - strength)
        return low + (1.0 + strength - low) * number

    flip, jitter, brightness, contrast, saturation, hue, order, grayscale, blur, sigma, solarize = numbers
    low, high = view.blur_sigma
    columns = out.T
    columns[0] = flip < view.flip
    columns[1] = jitter < view.jitter
    columns[2] = factor(view.brightness, brightness)
    columns[3] = factor(view.contrast, contrast)
    columns[4] = factor(view.saturation, saturation)
    columns[5] = view.hue * (2.0 * hue - 1.0)
    out[:, 6:10] = _ORDERS[np.floor(order * len(_ORDERS)).astype(np.int64)]
    columns[10] = grayscale < view.grayscale
    columns[11] = np.where(blur < view.blur, low + (high - low) * sigma, 0.0)
    columns[12] = solarize < view.solarize
