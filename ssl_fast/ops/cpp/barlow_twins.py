"""Barlow Twins on the CPU: csrc/cpu/barlow_twins.cpp where this process alone has fewer rows than columns.

Elsewhere, on the correlation side and in a group, most of the time are products and messages, both torch's: `forward`
is the plain one.
"""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, beside, module, result_dtype, scalar_beside, unavailable
from ssl_fast.ops.reference.barlow_twins import forward

__all__ = ["forward", "objective", "unavailable"]


def objective(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    lambd: float,
    eps: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss [] and, when wanted, dz1, dz2 [N, D]; 0 < N < D."""
    z1, z2 = z1.contiguous(), z2.contiguous()
    N, D = z1.shape
    value = scalar_beside(z1)
    dz1, dz2 = beside(result_dtype(z1.dtype), z1, z2) if with_grad else (None, None)
    module().barlow_twins(z1, z2, DTYPES[z1.dtype], N, D, lambd, eps, value, dz1, dz2, torch.get_num_threads())
    return value, dz1, dz2
