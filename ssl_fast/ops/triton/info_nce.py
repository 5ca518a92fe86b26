"""InfoNCE over a queue in Triton: one pass of split-K attention gives the losses and the gradients.

Letters: B queries, K rows of the queue, D embedding; s_ij = inv_temperature <q_i, queue_j>, s_i+ that of the key;
loss_i = log(exp s_i+ + sum_j exp s_ij) - s_i+.

    unit rows   queries in the compute dtype (the input's; the queue is cast to it tile by tile)
    queue       per part of the queue: sum of exponentials, largest logit, and the queue's rows weighted by them
    combine     parts added up in a fixed order; loss, dq, dk, dinv with the norm's backward, in fp32

Work: 4 B K D FLOP with gradients (2 B K D without); beyond D = 256 every chunk of 128 numbers of dq computes the
logits again. Extra memory: `splits` fp32 rows a query. Nothing is read back by the host; a CUDA graph can capture it.

Reference: He et al. 2020, arXiv:1911.05722, Eq. 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import rows, tiles
from .tiles import unavailable as unavailable


def forward(
    q: Tensor,  # [B, D]
    k: Tensor,  # [B, D]
    queue: Tensor,  # [K, D], rows are unit vectors
    inv_temperature: float | Tensor,
    normalize: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Losses [B] and, with gradients, d loss_i / d q_i [B, D], d k_i [B, D], d inv_temperature [B]; all fp32."""
    inv_temperature = tiles.device_scalar(inv_temperature, q.device)
    q, k, queue = q.contiguous(), k.contiguous(), queue.contiguous()
    loss = torch.empty(q.shape[0], dtype=torch.float32, device=q.device)
    gradients = (
        (torch.empty_like(q, dtype=torch.float32), torch.empty_like(k, dtype=torch.float32), torch.empty_like(loss))
        if with_grad
        else (None, None, None)
    )
    if q.shape[0] > 0:
        with tiles.on_device(q):
            dtype = torch.promote_types(q.dtype, k.dtype)
            parts = _attend(rows.unit_rows(q.to(dtype), normalize), q, queue, inv_temperature, normalize, with_grad)
            _combine(q, k, parts, loss, gradients, inv_temperature, normalize)
    return (loss, *gradients)


def _attend(
    z: Tensor,  # [padded B, padded D]
    q: Tensor,
    queue: Tensor,
    inv_temperature: float | Tensor,
    normalize: bool,
    with_grad: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Maxima [splits, B] (None when bounded), sums [splits, B], weighted rows [splits, B, padded D] (or None)."""
    import triton.language as tl

    from .info_nce_kernels import queue_kernel

    (batch, dim), length = q.shape, queue.shape[0]
    block_d, chunks = tiles.width(dim)
    tile = tiles.tile("queue", z.dtype, dim, q.device)
    row_tiles, parts, per_part = tiles.partition(batch, length, tile, q.device, most=256)
    bounded = tiles.bounded(inv_temperature, normalize)
    partial = torch.empty(parts, batch, dtype=torch.float32, device=q.device)
    maximum = None if bounded else torch.empty_like(partial)
    weighted = partial.new_empty(parts, batch, block_d * chunks) if with_grad else None
    queue_kernel[(row_tiles, parts, chunks if with_grad else 1)](
        z,
        queue,
        maximum,
        partial,
        weighted,
        inv_temperature,
        batch,
        length,
        per_part,
        D=dim,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=block_d,
        CHUNKS=chunks,
        BOUNDED=bounded,
        WITH_GRAD=with_grad,
        TENSOR_TEMPERATURE=isinstance(inv_temperature, Tensor),
        E_DTYPE=tl.float32 if z.dtype == torch.float32 else tl.bfloat16,
        PRECISION=tiles.precision(z.dtype),
        UPCAST=tiles.interpreted(),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return maximum, partial, weighted


def _combine(
    q: Tensor,
    k: Tensor,
    parts: tuple[Tensor | None, Tensor, Tensor | None],
    loss: Tensor,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    inv_temperature: float | Tensor,
    normalize: bool,
) -> None:
    from .info_nce_kernels import combine_kernel

    maximum, partial, weighted = parts
    batch, dim = q.shape
    block_d, chunks = tiles.width(dim)
    _, whole = rows.row_block(block_d * chunks)
    splits = partial.shape[0]
    combine_kernel[(batch,)](
        q,
        k,
        maximum,
        partial,
        weighted,
        loss,
        *gradients,
        inv_temperature,
        batch,
        splits,
        D=dim,
        WIDTH=block_d * chunks,
        BLOCK_P=1 << (splits - 1).bit_length(),
        BLOCK_S=max(1, min(16, 4096 // whole)),
        BLOCK_D=whole,
        EPS=rows.EPS,
        NORMALIZE=normalize,
        BOUNDED=maximum is None,
        WITH_GRAD=weighted is not None,
        TENSOR_TEMPERATURE=isinstance(inv_temperature, Tensor),
        num_warps=4,
    )
