"""InfoNCE over a queue in Triton: one pass of split-K attention gives the losses and the gradients.

Letters: B queries, K rows of the queue, D embedding; s_ij = inv_temperature <q_i, queue_j>, s_i+ that of the key;
loss_i = log(exp s_i+ + sum_j exp s_ij) - s_i+.

    unit rows   queries as a sum of bfloat16 numbers (1 for bf16, 2 for fp16, 3 for fp32); so is a queue that is not
                bf16 (a bf16 queue is read in place)
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
            parts = _attend(q, queue, inv_temperature, normalize, with_grad)
            _combine(q, k, parts, loss, gradients, inv_temperature, normalize)
    return (loss, *gradients)


def _attend(
    q: Tensor,
    queue: Tensor,
    inv_temperature: float | Tensor,
    normalize: bool,
    with_grad: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Maxima [splits, B] (None when bounded), sums [splits, B], weighted rows [splits, B, padded D] (or None)."""
    from .info_nce_kernels import queue_kernel

    (batch, dim), length = q.shape, queue.shape[0]
    num_planes = tiles.planes(q.dtype)
    block_d, chunks = tiles.width(dim, num_planes)
    tile = tiles.tile("queue", num_planes, dim, q.device)
    queue_planes = 1 if queue.dtype == torch.bfloat16 else num_planes
    if queue.dtype != torch.bfloat16:
        queue = rows.unit_rows(queue, False, queue_planes)
    row_tiles, parts, per_part = tiles.partition(batch, length, tile, q.device, most=256)
    bounded = tiles.bounded(inv_temperature, normalize)
    partial = torch.empty(parts, batch, dtype=torch.float32, device=q.device)
    maximum = None if bounded else torch.empty_like(partial)
    weighted = partial.new_empty(parts, batch, block_d * chunks) if with_grad else None
    queue_kernel[(row_tiles, parts, chunks if with_grad else 1)](
        rows.unit_rows(q, normalize, num_planes),
        queue,
        maximum,
        partial,
        weighted,
        inv_temperature,
        batch,
        length,
        per_part,
        PLANE=queue.shape[1] // queue_planes,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=block_d,
        CHUNKS=chunks,
        BOUNDED=bounded,
        WITH_GRAD=with_grad,
        TENSOR_TEMPERATURE=isinstance(inv_temperature, Tensor),
        PLANES=num_planes,
        QUEUE_PLANES=queue_planes,
        UPCAST=tiles.interpreted(),
        **tile.options(),
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
    block_d, chunks = tiles.width(dim, tiles.planes(q.dtype))
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
        **tiles.ROW_OPTIONS,
    )
