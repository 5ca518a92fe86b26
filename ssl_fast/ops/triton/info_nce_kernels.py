# mypy: ignore-errors
"""Device code of info_nce (see info_nce.py): attention of the queries over the queue, keys and values alike.

BOUNDED: exponentials relative to the fixed offset inv_temperature, the largest logit of unit vectors; a queue row so
long that its exponential overflows makes the loss infinite, never silently wrong.
"""

import triton
import triton.language as tl

from .blocks import LOG2E, LOWEST, dot, load_scalar, load_tile, load_unit_rows, normalize_backward, round_to, softplus


@triton.jit
def load_queue(queue, start, chunk, K, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, D: tl.constexpr):
    """queue[start : start + ROWS, chunk] as [ROWS, BLOCK_D], zero outside."""
    rows = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    pointers = queue + tl.cast(start, tl.int64) * D + chunk * BLOCK_D + rows[:, None] * D + d[None, :]
    inside = (rows < K - start)[:, None]
    if D % BLOCK_D != 0:
        inside = inside & (d < D - chunk * BLOCK_D)[None, :]
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def queue_kernel(
    q,  # [padded B, CHUNKS * BLOCK_D] unit queries in the compute dtype
    queue,  # [K, D]
    maximum,  # [splits, B] fp32 out: largest logit times log2(e); not written when BOUNDED
    partial,  # [splits, B] fp32 out: sum of exponentials relative to it
    weighted,  # [splits, B, CHUNKS * BLOCK_D] fp32 out: the queue's rows weighted by them; only WITH_GRAD
    inv_temperature,
    B,
    K,
    columns_per_split,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    BOUNDED: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
    E_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One part of the queue for a tile of queries; the third grid axis is the chunk of `weighted`."""
    scale = load_scalar(inv_temperature, TENSOR_TEMPERATURE) * LOG2E
    start_m = tl.program_id(0) * BLOCK_M
    rows = start_m + tl.arange(0, BLOCK_M)
    out_chunk = tl.program_id(2)
    Q_DTYPE: tl.constexpr = q.dtype.element_ty
    if CHUNKS == 1:
        a = load_tile(q, start_m, 0, BLOCK_M, BLOCK_D, CHUNKS)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], LOWEST, tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    column_begin = tl.program_id(1) * columns_per_split
    for start_n in range(column_begin, tl.minimum(column_begin + columns_per_split, K), BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if CHUNKS == 1:
            b = load_queue(queue, start_n, 0, K, BLOCK_N, BLOCK_D, D)
            s = dot(a, tl.trans(b.to(Q_DTYPE)), s, PRECISION, UPCAST)
        else:
            for chunk in range(CHUNKS):
                a_chunk = load_tile(q, start_m, chunk, BLOCK_M, BLOCK_D, CHUNKS)
                b_chunk = load_queue(queue, start_n, chunk, K, BLOCK_N, BLOCK_D, D)
                s = dot(a_chunk, tl.trans(b_chunk.to(Q_DTYPE)), s, PRECISION, UPCAST)
            b = load_queue(queue, start_n, out_chunk, K, BLOCK_N, BLOCK_D, D)
        s = s * scale
        if BOUNDED:
            e = tl.exp2(s - scale)
        else:
            previous = largest
            if start_n + BLOCK_N > K:
                s = tl.where((columns < K)[None, :], s, LOWEST)
            largest = tl.maximum(largest, tl.max(s, 1))
            e = tl.exp2(s - largest[:, None])
            total = total * tl.exp2(previous - largest)
            acc = acc * tl.exp2(previous - largest)[:, None]
        if start_n + BLOCK_N > K:
            e = tl.where((columns < K)[None, :], e, 0.0)
        total += tl.sum(e, 1)
        if WITH_GRAD:
            acc = dot(round_to(e, E_DTYPE, UPCAST), b.to(E_DTYPE), acc, PRECISION, UPCAST)
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
        largest = inv * LOG2E
    else:
        maxima = tl.load(maximum + part * B + row, mask=part < splits, other=LOWEST)
        largest = tl.max(maxima, 0)
        sums = sums * tl.exp2(maxima - largest)
    negatives = tl.sum(sums, 0)
    z, q_norm = load_unit_rows(q, row, inside, D, BLOCK_D, EPS, NORMALIZE)
    z_key, k_norm = load_unit_rows(k, row, inside, D, BLOCK_D, EPS, NORMALIZE)
    gap = largest / LOG2E + tl.log(negatives) - inv * tl.sum(z * z_key, 1)
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
                rows = rows * tl.exp2(block_maximum - largest)[:, None]
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
