"""VICReg on the CPU: csrc/cpu/vicreg.cpp where this process alone has fewer rows than columns.

Elsewhere, on the covariance side and in a group, three quarters of the time are products and messages, both torch's:
`forward` is the plain one.
"""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, beside, module, result_dtype, scalar_beside, unavailable
from ssl_fast.ops.reference.vicreg import forward

__all__ = ["forward", "objective", "unavailable"]


def objective(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    invariance: float,
    variance: float,
    covariance: float,
    gamma: float,
    eps: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss [] and, when wanted, dz1, dz2 [N, D]; 0 < N < D."""
    z1, z2 = z1.contiguous(), z2.contiguous()
    N, D = z1.shape
    value = scalar_beside(z1)
    dz1, dz2 = beside(result_dtype(z1.dtype), z1, z2) if with_grad else (None, None)
    module().vicreg(
        z1, z2, DTYPES[z1.dtype], N, D, invariance, variance, covariance, gamma, eps, value, dz1, dz2,
        torch.get_num_threads(),
    )  # fmt: skip
    return value, dz1, dz2
