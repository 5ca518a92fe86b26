"""The crops' C++ beside numpy's: the same bits, whatever the sizes."""

import numpy as np
import pytest

from ssl_fast.data.crops import ATTEMPTS, NUM_UNIFORMS, _first_that_fits, _first_that_fits_cpp, random_boxes
from ssl_fast.ops.cpp import why_not_built

needs_cpp = pytest.mark.skipif(why_not_built("_cpu") is not None, reason="the C++ module was not built")
RATIO = (3 / 4, 4 / 3)


def cases(num, largest, seed):
    random = np.random.default_rng(seed)
    numbers = random.random((num, NUM_UNIFORMS + 7))
    return (
        numbers,
        np.exp(random.uniform(-0.3, 0.3, (num, ATTEMPTS))),
        random.integers(1, largest, (num, 2)).astype(float),
    )


@needs_cpp
@pytest.mark.parametrize("largest", [2, 8, 60, 5000])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.05, 0.14), (0.9, 1.0), (1.0, 1.0)])
def test_the_kernel_gives_numpys_bits(scale, largest):
    numbers, ratios, sizes = cases(2000, largest, 1)
    ours, numpys = (f(scale, ratios, numbers, sizes) for f in (_first_that_fits_cpp, _first_that_fits))
    assert np.array_equal(ours, numpys)
    assert (numpys[:, 2] == 0).any() or scale != (1.0, 1.0) or largest == 2  # some fit nowhere


@needs_cpp
def test_the_kernel_reads_rows_that_lie_apart():
    numbers, ratios, sizes = cases(50, 60, 2)
    apart = np.repeat(numbers, 2, axis=0)[::2]
    whole = _first_that_fits_cpp((0.08, 1.0), ratios, numbers, sizes)
    assert np.array_equal(whole, _first_that_fits_cpp((0.08, 1.0), ratios, apart, sizes))
    assert _first_that_fits_cpp((0.08, 1.0), ratios[:0], numbers[:0], sizes[:0]).shape == (0, 4)


def test_boxes_lie_inside_their_images_without_the_kernel_too(monkeypatch):
    numbers, _, sizes = cases(3000, 40, 3)
    with_kernel = random_boxes((0.08, 1.0), RATIO, numbers, sizes)
    monkeypatch.setattr("ssl_fast.data.crops.why_not_built", lambda name: "not built")
    boxes = random_boxes((0.08, 1.0), RATIO, numbers, sizes)
    assert np.array_equal(boxes, with_kernel)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all() and (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
