"""Philox-4x32-10, a counter-based random generator: in C++ (csrc/core/philox.h), and vectorised in numpy.

The numbers depend on (counter, key) alone, so any worker, rank or engine can compute the ones it needs without a state.

Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", Section 3.3 (constants of Random123).
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_fast.ops.cpp import module, why_not_built

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Words = NDArray[np.uint64]


def philox4x32(
    counter: tuple[Any, Any, Any, Any],  # four arrays of 32-bit words held in uint64, broadcastable to one shape [...]
    key: tuple[int, int],
) -> tuple[Words, Words, Words, Words]:  # four arrays [...], each word < 2**32
    """Encrypts `counter` with `key`: four independent uniform 32-bit words per counter."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def split_seed(seed: int) -> tuple[int, int]:
    """The low and high 32-bit words of a seed, as a Philox key."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected an integer in [0, 2**64), got {seed}")
    return seed & 0xFFFFFFFF, seed >> 32


def uniforms(
    index: NDArray[np.int64],  # [N] sample numbers
    stream: tuple[int, int],  # (epoch, purpose): purpose < 2**24
    seed: int,
    count: int,
) -> NDArray[np.float64]:  # [N, count] in [0, 1)
    """`count` uniform numbers for each sample, functions of (seed, stream, sample) alone.

    The counter is (index low, index high, epoch, purpose << 8 | block); block b gives numbers 4b .. 4b+3.
    """
    epoch, purpose = stream
    seed = operator.index(seed)  # NumPy's too
    split_seed(seed)  # checks it
    index = np.ascontiguousarray(index, dtype=np.int64)
    if why_not_built("_cpu") is not None:
        return _uniforms(index, epoch, purpose, seed, count)
    numbers = np.empty((len(index), count))
    module().uniforms(index.ctypes.data, len(index), count, epoch, purpose, seed, numbers.ctypes.data)
    return numbers


def _uniforms(
    index: NDArray[np.int64],  # [N]
    epoch: int,
    purpose: int,
    seed: int,
    count: int,
) -> NDArray[np.float64]:  # [N, count]
    """The same without the C++ module."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)[None, :]
    sample = index.astype(np.uint64)[:, None]
    counter = (sample & _LOW, sample >> _HALF, np.uint64(epoch), np.uint64(purpose << 8) | blocks)
    words = np.stack(np.broadcast_arrays(*philox4x32(counter, split_seed(seed))), axis=-1)
    return words.reshape(len(sample), 4 * blocks.size)[:, :count] * 2.0**-32


def permutation(
    num: int,
    seed: int,
    epoch: int,
) -> NDArray[np.int64]:  # [num]
    """A random order of range(num): the stable order of one random number per sample."""
    return np.argsort(uniforms(np.arange(num), (epoch, 0xFFFFFF), seed, 1)[:, 0], kind="stable")
