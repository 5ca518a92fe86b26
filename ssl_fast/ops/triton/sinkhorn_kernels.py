# mypy: ignore-errors
"""Device code of sinkhorn: sums over the columns of rows that are scaled, and the assignments."""

import triton
import triton.language as tl

from .blocks import LOG2E, LOWEST


@triton.jit
def column_kernel(
    logits,  # [N, K]
    log_v,  # [K] fp32; only SCALED
    largest,  # [N] fp32: with `sums` the normalisers of x / temperature + log v; only SCALED
    sums,  # [N] fp32; only SCALED
    column_maximum,  # [strips, K] fp32 out
    column_sum,  # [strips, K] fp32 out: of exponentials relative to the maximum
    N,
    K,
    inv_temperature,
    STRIP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Maxima and sums over STRIP rows of exp(x / temperature), or of the assignments u_n E_nk v_k."""
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    if SCALED:
        bias = tl.load(log_v + columns, mask=columns < K, other=0.0)[None, :]
    begin = tl.program_id(1) * STRIP
    highest = tl.full([BLOCK_C], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, STRIP, BLOCK_R):
        rows = begin + start + tl.arange(0, BLOCK_R)
        inside = (rows < N)[:, None] & (columns < K)[None, :]
        cells = rows.to(tl.int64)[:, None] * K + columns[None, :]
        s = tl.load(logits + cells, mask=inside, other=0.0).to(tl.float32) * inv_temperature
        if SCALED:  # rounded as for the normalisers, so that the roundings of large logits cancel
            s = s + bias - tl.load(largest + rows, mask=rows < N, other=0.0)[:, None]
            s -= tl.log(tl.load(sums + rows, mask=rows < N, other=1.0))[:, None]
        s = tl.where(inside, s, LOWEST)
        previous = highest
        highest = tl.maximum(highest, tl.max(s, 0))
        e = tl.where(inside, tl.exp2((s - highest[None, :]) * LOG2E), 0.0)
        total = total * tl.exp2((previous - highest) * LOG2E) + tl.sum(e, 0)
    place = tl.program_id(1).to(tl.int64) * K + columns
    tl.store(column_maximum + place, highest, mask=columns < K)
    tl.store(column_sum + place, total, mask=columns < K)


@triton.jit
def assignment_kernel(
    logits,  # [N, K]
    log_v,  # [K] fp32
    largest,  # [N] fp32: with `sums` the normalisers of x / temperature + log v
    sums,  # [N] fp32
    q,  # [N, K] fp32 out
    K,
    inv_temperature,
    BLOCK: tl.constexpr,
):
    """The softmax of x / temperature + log v, a block of one row."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    cells = row.to(tl.int64) * K + columns
    s = tl.load(logits + cells, mask=columns < K, other=0.0).to(tl.float32) * inv_temperature
    s += tl.load(log_v + columns, mask=columns < K, other=0.0)
    e = tl.exp2((s - tl.load(largest + row)) * LOG2E) / tl.load(sums + row)
    tl.store(q + cells, e, mask=columns < K)
