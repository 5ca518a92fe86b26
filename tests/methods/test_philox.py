"""The generator on the device: the loader's generator to the last bit, and uniform."""

import numpy as np
import pytest
import torch

from ssl_fast.data.philox import philox4x32 as in_numpy
from ssl_fast.methods.philox import philox4x32, uniforms

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known-answer vectors of Random123 (kat_vectors, philox4x32 with 10 rounds)
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    words = philox4x32(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


def test_the_same_words_as_the_loaders_generator():
    counter = np.random.default_rng(0).integers(0, 2**32, (4, 1000), dtype=np.uint64)
    expected = in_numpy(tuple(counter), (123, 456))
    got = philox4x32(tuple(torch.from_numpy(words.astype(np.int64)) for words in counter), (123, 456))
    for a, b in zip(expected, got, strict=True):
        assert np.array_equal(a.astype(np.int64), b.numpy())


def test_uniform_and_independent():
    numbers = uniforms(torch.arange(2000), 7, 10)
    assert numbers.shape == (2000, 10) and numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers.float(), 100, 0, 1)
    # chi-square with 99 degrees of freedom: mean 99, deviation 14
    assert ((counts - 200).square() / 200).sum() < 99 + 5 * 14
    correlation = torch.corrcoef(numbers.T) - torch.eye(10)
    assert correlation.abs().max() < 5 / 2000**0.5
    assert abs(torch.corrcoef(torch.stack((numbers[:-1, 0], numbers[1:, 0])))[0, 1]) < 5 / 2000**0.5


def test_a_function_of_key_and_sample():
    index = torch.tensor([5, 2**40 + 1, 0, 77])
    numbers = uniforms(index, 3, 6)
    assert torch.equal(uniforms(index.flip(0), 3, 6).flip(0), numbers)
    assert torch.equal(uniforms(index[1:2], 3, 4), numbers[1:2, :4])
    for other in (uniforms(index, 4, 6), uniforms(index, 3 + (1 << 40), 6), uniforms(index + 2**32, 3, 6)):
        assert (other != numbers).all()
    assert torch.equal(uniforms(index, 3 + (1 << 64), 6), numbers)  # 64 bits count
