import numpy as np
import pytest

from ssl_fast.data.philox import _uniforms, permutation, philox4x32, split_seed, uniforms

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
    assert tuple(int(word) for word in philox4x32(counter, key)) == expected


def test_uniforms_follow_the_documented_counter():
    (row,) = uniforms(np.array([2**33 + 5]), (7, 3), seed=2**40 + 9, count=8)
    key = split_seed(2**40 + 9)
    for block in range(2):
        words = philox4x32((5, 2, 7, 3 << 8 | block), key)
        assert [int(word) / 2**32 for word in words] == row[4 * block : 4 * block + 4].tolist()


@pytest.mark.parametrize("count", [1, 4, 33])
def test_numpy_gives_the_numbers_of_the_kernel(count):
    index = np.concatenate([np.arange(50), [2**32 - 1, 2**32, 2**40 + 3]])
    for epoch, purpose, seed in ((0, 0, 0), (7, 3, 2**40 + 9), (2**32 - 1, 0xFFFFFF, 2**64 - 1)):
        kernel = uniforms(index, (epoch, purpose), seed, count)
        assert np.array_equal(kernel, _uniforms(index, epoch, purpose, seed, count))


def test_a_sample_keeps_its_numbers_in_any_company():
    whole = uniforms(np.arange(100), (0, 0), 1, 9)
    some = uniforms(np.array([42, 3]), (0, 0), 1, 9)
    assert np.array_equal(some, whole[[42, 3]])
    assert not np.array_equal(whole, uniforms(np.arange(100), (0, 0), 2, 9))
    assert not np.array_equal(whole, uniforms(np.arange(100), (1, 0), 1, 9))


def test_permutation_is_a_permutation_of_its_key():
    order = permutation(1000, 5, 2)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, permutation(1000, 5, 2))
    assert (order != permutation(1000, 5, 3)).mean() > 0.98
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match=r"seed: expected an integer"):
        permutation(3, -1, 0)
