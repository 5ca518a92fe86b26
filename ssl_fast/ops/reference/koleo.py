"""Nearest neighbours among unit rows in plain torch, a panel of similarities at a time."""

import torch
from torch import Tensor

_PANEL = 1 << 24  # similarities that are alive at a time


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def neighbours(
    z: Tensor,  # [M, D] unit rows
    begin: int,
    end: int,
) -> Tensor:
    """The row nearest to each of the rows [begin, end) and not itself, [end - begin] int64; M is at least 2."""
    found = torch.empty(end - begin, dtype=torch.int64, device=z.device)
    step = max(1, _PANEL // len(z))
    with torch.autocast(z.device.type, enabled=False):
        for first in range(begin, end, step):
            last = min(end, first + step)
            cosines = z[first:last] @ z.T
            cosines.diagonal(first).fill_(-torch.inf)
            found[first - begin : last - begin] = cosines.argmax(1)
    return found
