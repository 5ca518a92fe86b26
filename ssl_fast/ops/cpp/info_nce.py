"""InfoNCE against a queue on the CPU: csrc/cpu/info_nce.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, NO_GRADIENTS, beside, module, result_dtype, scalar_beside, unavailable

__all__ = ["forward", "objective", "unavailable"]


def forward(
    q: Tensor,  # [B, D]
    k: Tensor,  # [B, D]
    queue: Tensor,  # [K, D] unit rows
    inv_temperature: float | Tensor,
    normalize: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss [B]; with_grad also its gradients per row: dq [B, D], dk [B, D], d loss_i / d inv_temperature [B]."""
    q, k, queue = q.contiguous(), k.to(q.dtype).contiguous(), queue.contiguous()
    B, D = q.shape
    dtype = result_dtype(q.dtype)
    loss = torch.empty(B, dtype=dtype, device="cpu")
    grads = (
        [torch.empty(shape, dtype=dtype, device="cpu") for shape in ((B, D), (B, D), (B,))] if with_grad else [None] * 3
    )
    module().info_nce_forward(
        q, k, DTYPES[q.dtype], queue, DTYPES[queue.dtype], B, len(queue), D,
        float(inv_temperature), normalize, loss, *grads,
        torch.get_num_threads(),
    )  # fmt: skip
    dq, dk, dinv = grads
    return loss, dq, dk, dinv


def objective(
    q: Tensor,  # [B, D]
    k: Tensor,  # [B, D]
    weight: Tensor | None,  # [B]
    queue: Tensor,  # [K, D] unit rows
    inv_temperature: float,
    normalize: bool,
    average: bool,
    with_grad: bool,
    with_dtemperature: bool,
) -> tuple[Tensor | None, ...]:
    """Mean or sum over the rows [] and, when wanted, dq, dk [B, D], dweight [B], dtemperature []; all in one call."""
    dtype = result_dtype(q.dtype)
    value = scalar_beside(q)
    q, k, queue = q.contiguous(), k.contiguous(), queue.contiguous()
    weight = None if weight is None else weight.to(dtype).contiguous()
    grads = NO_GRADIENTS[:4]
    if with_grad:
        grads = beside(dtype, q, k, weight, value if with_dtemperature else None)
    B, D = q.shape
    module().info_nce(
        q, k, DTYPES[q.dtype], queue, DTYPES[queue.dtype], B, queue.shape[0],
        D, inv_temperature, normalize, weight, average, value, *grads,
        torch.get_num_threads(),
    )  # fmt: skip
    return value, *grads
