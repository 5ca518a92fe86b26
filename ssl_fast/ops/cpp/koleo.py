"""Nearest neighbours among unit rows on the CPU: csrc/cpu/koleo.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, module, unavailable

__all__ = ["neighbours", "unavailable"]


def neighbours(
    z: Tensor,  # [M, D] unit rows
    begin: int,
    end: int,
) -> Tensor:
    """The row nearest to each of the rows [begin, end) and not itself, [end - begin] int64; M is at least 2."""
    z = z.contiguous()
    found = torch.empty(end - begin, dtype=torch.int64, device="cpu")
    module().koleo_neighbours(
        z.data_ptr(), DTYPES[z.dtype], *z.shape, begin, end, found.data_ptr(), torch.get_num_threads()
    )
    return found
