"""Policies of supervised training: which operations a view gets (one or two), and how strongly.

Reference: Cubuk et al. 2018, arXiv:1805.09501, table 9 (AutoAugment, ImageNet); Cubuk et al. 2019, arXiv:1909.13719
(RandAugment; N = 2 and M = 9 of 30 as for ResNet-50, section 4.4); Müller and Hutter 2021, arXiv:2103.10158
(TrivialAugment, the wide ranges of table 1).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

NUM_UNIFORMS = 5  # random numbers that a policy may use
NUM_COLUMNS = 4  # operation and magnitude, twice

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize", "invert",
)  # fmt: skip
_INVERT = OPERATIONS.index("invert")  # the last one: AutoAugment's alone
_POSTERIZE = OPERATIONS.index("posterize")
_TO_EITHER_SIDE = np.array([1 <= i <= 9 for i in range(len(OPERATIONS))])
_AT_NOTHING = np.array([8.0 * (name == "posterize") + (name == "solarize") for name in OPERATIONS])  # bits, threshold

Reals = NDArray[np.float64]
Words = NDArray[np.int64]


def _table9() -> tuple[Words, Reals, Reals]:
    """AutoAugment's 25 pairs: operations [25, 2], their probabilities, their levels of 0 to 9 as shares of 1."""
    pairs = """
        posterize .4 8, rotate .6 9    | solarize .6 5, autocontrast .6 0 | equalize .8 0, equalize .6 0
        posterize .6 7, posterize .6 6 | equalize .4 0, solarize .2 4     | equalize .4 0, rotate .8 8
        solarize .6 3, equalize .6 0   | posterize .8 5, equalize 1 0     | rotate .2 3, solarize .6 8
        equalize .6 0, posterize .4 6  | rotate .8 8, color .4 0          | rotate .4 9, equalize .6 0
        equalize 0 0, equalize .8 0    | invert .6 0, equalize 1 0        | color .6 4, contrast 1 8
        rotate .8 8, color 1 2         | color .8 8, solarize .8 7        | sharpness .4 7, invert .6 0
        shear_x .6 5, equalize 1 0     | color .4 0, equalize .6 0        | equalize .4 0, solarize .2 4
        solarize .6 5, autocontrast .6 0 | invert .6 0, equalize 1 0      | color .6 4, contrast 1 8
        equalize .8 0, equalize .6 0
    """
    words = [part.split() for part in pairs.replace("|", ",").replace("\n", ",").split(",") if part.strip()]
    numbers = np.array([[OPERATIONS.index(name), float(p), int(level) / 9] for name, p, level in words])
    operations, probabilities, levels = numbers.reshape(-1, 2, 3).transpose(2, 0, 1)
    return operations.astype(np.int64), probabilities, levels


_PAIRS, _PROBABILITIES, _LEVELS = _table9()


def _autoaugment(
    numbers: Reals,  # [5, N] in [0, 1)
    size: int,
) -> Reals:  # [N, 4]
    """One of the pairs; each of its operations happens with its own probability."""
    pair = (numbers[0] * len(_PAIRS)).astype(np.int64)
    happens = _PROBABILITIES[pair] > numbers[1:3].T
    return _columns(np.where(happens, _PAIRS[pair], 0), _LEVELS[pair], numbers[3:5].T, _reach(size))


def _randaugment(numbers: Reals, size: int) -> Reals:
    """Two operations, each of equal chance, at level 9 of 30."""
    operations = (numbers[:2].T * _INVERT).astype(np.int64)
    return _columns(operations, np.full(operations.shape, 9 / 30), numbers[3:5].T, _reach(size))


def _trivialaugment(numbers: Reals, size: int) -> Reals:
    """One operation at one of 31 levels."""
    operation, level = (numbers[0] * _INVERT).astype(np.int64), np.floor(numbers[1] * 31) / 30
    nothing = np.zeros_like(operation)
    return _columns(np.stack([operation, nothing], 1), np.stack([level, level], 1), numbers[3:5].T, _WIDE)


def _reach(size: int) -> Reals:  # [15]
    """What each operation does at the highest level: shear, pixels, degrees, factors, bits, share of the threshold."""
    shift = 150 / 331 * size
    return np.array([0, 0.3, 0.3, shift, shift, 30, 0.9, 0.9, 0.9, 0.9, -4, -1, 0, 0, 0])


_WIDE = np.array([0, 0.99, 0.99, 32, 32, 135, 0.99, 0.99, 0.99, 0.99, -6, -1, 0, 0, 0])


def _columns(
    operations: Words,  # [N, 2]
    levels: Reals,  # [N, 2] in [0, 1]
    sides: Reals,  # [N, 2] in [0, 1): below a half, the operation goes the other way
    reach: Reals,  # [15]
) -> Reals:  # [N, 4]
    sign = np.where(_TO_EITHER_SIDE[operations] & (sides < 0.5), -1.0, 1.0)
    magnitudes = _AT_NOTHING[operations] + sign * reach[operations] * levels
    magnitudes = np.where(operations == _POSTERIZE, np.rint(magnitudes), magnitudes)
    return np.stack([operations[:, 0], magnitudes[:, 0], operations[:, 1], magnitudes[:, 1]], axis=1)


POLICIES: dict[str, Callable[[Reals, int], Reals]] = {
    "autoaugment": _autoaugment,
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
}


def draw_policy(
    name: str,
    numbers: Reals,  # [N, 5] in [0, 1)
    size: int,  # side of the view, pixels
) -> Reals:  # [N, 4] operation, magnitude, operation, magnitude
    """What a policy does to each view.

    Operations are numbers of `OPERATIONS`. Magnitudes are pixels a pixel (shear), pixels (translation), degrees, what
    is added to the factor 1 (brightness, color, contrast, sharpness), bits (posterize), a threshold of 1 (solarize).
    """
    return POLICIES[name](np.ascontiguousarray(numbers.T), size)
