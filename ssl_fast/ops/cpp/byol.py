"""BYOL's distance on the CPU: csrc/cpu/byol.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, NO_GRADIENTS, beside, module, result_dtype, scalar_beside, unavailable

__all__ = ["forward", "objective", "unavailable"]


def forward(
    p: Tensor,  # [N, D]
    z: Tensor,  # [N, D]
    normalize: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Per row: the distance [N] and, when wanted, its gradient dp [N, D]; at least fp32."""
    p, z = p.contiguous(), z.contiguous()
    N, D = p.shape
    dtype = result_dtype(p.dtype)
    loss, dp = (
        torch.empty(N, dtype=dtype, device="cpu"),
        torch.empty(N, D, dtype=dtype, device="cpu") if with_grad else None,
    )
    module().byol_forward(
        p, DTYPES[p.dtype], z, DTYPES[z.dtype], N, D, normalize, loss, dp, torch.get_num_threads()
    )  # fmt: skip
    return loss, dp


def objective(
    p: Tensor,  # [N, D]
    weight: Tensor | None,  # [N]
    z: Tensor,  # [N, D]
    normalize: bool,
    factor: float,
    offset: float,
    average: bool,
    with_grad: bool,
) -> tuple[Tensor | None, ...]:
    """Mean or sum [] of factor distance + offset and, when wanted, dp [N, D] and dweight [N]; all in one call."""
    p, z = p.contiguous(), z.contiguous()
    N, D = p.shape
    dtype = result_dtype(p.dtype)
    weight = None if weight is None else weight.to(dtype).contiguous()
    value = scalar_beside(p)
    grads = beside(dtype, p, weight) if with_grad else NO_GRADIENTS[:2]
    module().byol(
        p, DTYPES[p.dtype], z, DTYPES[z.dtype], N, D, normalize, factor, offset, weight, average, value, *grads,
        torch.get_num_threads(),
    )  # fmt: skip
    return value, *grads
