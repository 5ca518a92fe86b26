# mypy: ignore-errors
"""Device code of info_nce (see info_nce.py): attention of the queries over the queue, keys and values alike.

BOUNDED: exponentials relative to the fixed offset inv_temperature, the largest logit of unit vectors; a queue row so
long that its exponential overflows makes the loss infinite, never silently wrong.
"""

import triton
import triton.language as tl

from .blocks import (
    LOG2E,
    LOWEST,
    dot_planes,
    load_planes,
    load_scalar,
    load_unit_rows,
    normalize_backward,
    softplus,
    split,
)


@triton.jit
def load_queue(
    queue,
    start,
    chunk,
    K,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PLANE: tl.constexpr,
    PLANES: tl.constexpr,
):
    """The planes of queue[start : start + ROWS, chunk], each [ROWS, BLOCK_D], zero outside."""
    rows = tl.arange(0, ROWS)
    d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    pointers = queue + tl.cast(start, tl.int64) * (PLANES * PLANE) + rows[:, None] * (PLANES * PLANE) + d[None, :]
    inside = (rows < K - start)[:, None]
    if PLANE % BLOCK_D != 0:
        inside = inside & (d < PLANE)[None, :]
    x0 = tl.load(pointers, mask=inside, other=0.0)
    x1 = x0
    x2 = x0
    if PLANES >= 2:
        x1 = tl.load(pointers + PLANE, mask=inside, other=0.0)
    if PLANES == 3:
        x2 = tl.load(pointers + 2 * PLANE, mask=inside, other=0.0)
    return x0, x1, x2


@triton.jit
def queue_kernel(
    q,  # [padded B, PLANES * CHUNKS * BLOCK_D] bf16, unit queries
    queue,  # [K, QUEUE_PLANES * PLANE] bf16
    maximum,  # [splits, B] fp32 out: largest logit; not written when BOUNDED
    partial,  # [splits, B] fp32 out: sum of exponentials relative to it
    weighted,  # [splits, B, CHUNKS * BLOCK_D] fp32 out: the queue's rows weighted by them; only WITH_GRAD
    inv_temperature,
    B,
    K,
    columns_per_split,
    PLANE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    BOUNDED: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
    PLANES: tl.constexpr,
    QUEUE_PLANES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One part of the queue for a tile of queries; the third grid axis is the chunk of `weighted`."""
    inv = load_scalar(inv_temperature, TENSOR_TEMPERATURE)
    start_m = tl.program_id(0) * BLOCK_M
    rows = start_m + tl.arange(0, BLOCK_M)
    out_chunk = tl.program_id(2)
    a0, a1, a2 = load_planes(q, start_m, 0, BLOCK_M, BLOCK_D, CHUNKS, PLANES)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], LOWEST, tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    column_begin = tl.program_id(1) * columns_per_split
    for start_n in range(column_begin, tl.minimum(column_begin + columns_per_split, K), BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if CHUNKS == 1:
            b0, b1, b2 = load_queue(queue, start_n, 0, K, BLOCK_N, BLOCK_D, PLANE, QUEUE_PLANES)
            s = dot_planes(a0, a1, a2, tl.trans(b0), tl.trans(b1), tl.trans(b2), s, PLANES, QUEUE_PLANES, UPCAST)
        else:
            for chunk in range(CHUNKS):
                c0, c1, c2 = load_planes(q, start_m, chunk, BLOCK_M, BLOCK_D, CHUNKS, PLANES)
                d0, d1, d2 = load_queue(queue, start_n, chunk, K, BLOCK_N, BLOCK_D, PLANE, QUEUE_PLANES)
                s = dot_planes(c0, c1, c2, tl.trans(d0), tl.trans(d1), tl.trans(d2), s, PLANES, QUEUE_PLANES, UPCAST)
            b0, b1, b2 = load_queue(queue, start_n, out_chunk, K, BLOCK_N, BLOCK_D, PLANE, QUEUE_PLANES)
        if BOUNDED:
            e = tl.exp2(s * (inv * LOG2E) - inv * LOG2E)
        else:
            # Differences come before log2(e): logits of hundreds would lose them to rounding.
            s = s * inv
            if start_n + BLOCK_N > K:
                s = tl.where((columns < K)[None, :], s, LOWEST)
            previous = largest
            largest = tl.maximum(largest, tl.max(s, 1))
            e = tl.exp2((s - largest[:, None]) * LOG2E)
            shrink = tl.exp2((previous - largest) * LOG2E)
            total = total * shrink
            acc = acc * shrink[:, None]
        if start_n + BLOCK_N > K:
            e = tl.where((columns < K)[None, :], e, 0.0)
        total += tl.sum(e, 1)
        if WITH_GRAD:
            e0, e1, e2 = split(e, PLANES, UPCAST)
            acc = dot_planes(e0, e1, e2, b0, b1, b2, acc, PLANES, QUEUE_PLANES, UPCAST)
    target = tl.program_id(1).to(tl.int64) * B + rows
    if out_chunk == 0:
        tl.store(partial + target, total, mask=rows < B)
        if not BOUNDED:
            tl.store(maximum + target, largest, mask=rows < B)
    if WITH_GRAD:
        d = out_chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        tl.store(weighted + target[:, None] * (CHUNKS * BLOCK_D) + d[None, :], acc, mask=(rows < B)[:, None])


@triton.jit
def combine_kernel(
    q,  # [B, D] raw queries
    k,  # [B, D] raw positive keys
    maximum,  # [splits, B] fp32; not read when BOUNDED
    partial,  # [splits, B] fp32
    weighted,  # [splits, B, WIDTH] fp32; only WITH_GRAD
    loss,  # [B] fp32 out
    dq,  # [B, D] fp32 out, only WITH_GRAD
    dk,  # [B, D] fp32 out, only WITH_GRAD
    dinv,  # [B] fp32 out, only WITH_GRAD: d loss_i / d inv_temperature
    inv_temperature,
    B,
    splits,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EPS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BOUNDED: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
):
    """One query: the parts of the queue in a fixed order, then its loss and gradients with the norm's backward."""
    inv = load_scalar(inv_temperature, TENSOR_TEMPERATURE)
    row = tl.program_id(0) + tl.arange(0, 1)
    inside = row < B
    part = tl.arange(0, BLOCK_P)
    sums = tl.load(partial + part * B + row, mask=part < splits, other=0.0)
    if BOUNDED:
        largest = inv
    else:
        maxima = tl.load(maximum + part * B + row, mask=part < splits, other=LOWEST)
        largest = tl.max(maxima, 0)
        sums = sums * tl.exp2((maxima - largest) * LOG2E)
    negatives = tl.sum(sums, 0)
    z, q_norm = load_unit_rows(q, row, inside, D, BLOCK_D, EPS, NORMALIZE)
    z_key, k_norm = load_unit_rows(k, row, inside, D, BLOCK_D, EPS, NORMALIZE)
    gap = largest + tl.log(negatives) - inv * tl.sum(z * z_key, 1)
    tl.store(loss + row, softplus(gap))
    if WITH_GRAD:
        d = tl.arange(0, BLOCK_D)
        mean = tl.zeros([BLOCK_D], tl.float32)  # the queue's rows averaged under the softmax over the negatives
        for start in range(0, splits, BLOCK_S):
            block = start + tl.arange(0, BLOCK_S)
            cells = (block.to(tl.int64) * B + row)[:, None] * WIDTH + d[None, :]
            rows = tl.load(weighted + cells, mask=(block < splits)[:, None] & (d < WIDTH)[None, :], other=0.0)
            if not BOUNDED:
                block_maximum = tl.load(maximum + block * B + row, mask=block < splits, other=LOWEST)
                rows = rows * tl.exp2((block_maximum - largest) * LOG2E)[:, None]
            mean += tl.sum(rows, 0)
        mean = mean / tl.maximum(negatives, 1e-37)
        u = tl.exp2(-tl.abs(gap) * LOG2E)
        missed = tl.where(gap > 0, 1.0, u) / (1.0 + u)  # 1 - p_positive
        direction = missed[:, None] * (mean[None, :] - z_key)
        tl.store(dinv + row, tl.sum(z * direction, 1))
        into_q, _ = normalize_backward(inv * direction, z, q_norm, EPS, NORMALIZE)
        into_k, _ = normalize_backward(-inv * missed[:, None] * z, z_key, k_norm, EPS, NORMALIZE)
        cells = row.to(tl.int64)[:, None] * D + d[None, :]
        tl.store(dq + cells, into_q, mask=(d < D)[None, :])
        tl.store(dk + cells, into_k, mask=(d < D)[None, :])
