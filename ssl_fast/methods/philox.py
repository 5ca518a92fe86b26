"""Random numbers that are functions of (key, sample), made by the device that needs them: Philox 4x32-10 in torch.

`ssl_fast.data.philox` is the same generator in numpy and C++, for what the loader draws.

Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", Section 3.3 (constants of Random123).
"""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_STREAM = 0x6D61736B  # the counter's last word; no purpose of the loader's draws has it


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor],  # four of 32-bit words held in int64, broadcastable to one shape
    key: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encrypts `counter` with `key`: four independent uniform 32-bit words per counter."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product, by halves of the constant: int64 has no room for the whole."""
    upper, lower = word * (constant >> 16), word * (constant & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & _LOW


@torch.no_grad()
def uniforms(
    index: Tensor,  # [N] int64, sample numbers
    key: int,
    count: int,
) -> Tensor:  # [N, count] float64 in [0, 1)
    """`count` uniform numbers for each sample, functions of (key, sample) alone; on the device of `index`.

    The counter is (index low, index high, block, a constant); block b gives numbers 4b .. 4b+3.

    Args:
        key: of the step; its low 64 bits count.
    """
    blocks = torch.arange(-(-count // 4), device=index.device)[None]
    sample = index[:, None]
    counter = (sample & _LOW, sample >> 32, blocks, torch.full_like(blocks, _STREAM))  # mixed after two rounds
    words = torch.stack(philox4x32(counter, (key & _LOW, (key >> 32) & _LOW)), dim=-1)
    return words.flatten(1)[:, :count].double() * 2.0**-32
