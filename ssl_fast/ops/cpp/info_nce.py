"""InfoNCE against a queue on the CPU: csrc/cpu/info_nce.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, module, result_dtype, unavailable

__all__ = ["forward", "unavailable"]


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
    loss = torch.empty(B, dtype=dtype)
    grads = [torch.empty(shape, dtype=dtype) for shape in ((B, D), (B, D), (B,))] if with_grad else [None] * 3
    module().info_nce_forward(
        q.data_ptr(), k.data_ptr(), DTYPES[q.dtype], queue.data_ptr(), DTYPES[queue.dtype], B, len(queue), D,
        float(inv_temperature), normalize, loss.data_ptr(), *(0 if grad is None else grad.data_ptr() for grad in grads),
        torch.get_num_threads(),
    )  # fmt: skip
    dq, dk, dinv = grads
    return loss, dq, dk, dinv
