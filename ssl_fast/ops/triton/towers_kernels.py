# mypy: ignore-errors
"""Device code of clip_loss and siglip_loss: what happens to a chunk of products <x_i, y_j> between two matrix products.

Rows i are those of one tower (R of them, the first is pair `begin`), columns j all M rows of the other. Raw rows are
multiplied, so that nothing is rounded before: the inverse norms make the products similarities here, in fp32.
"""

import triton
import triton.language as tl

from .blocks import LOG2E, LOWEST, load_scalar, round_bf16, softplus


@triton.jit
def load_similarities(
    products,  # [R, M] fp32
    row_inverse,  # [R] fp32
    column_inverse,  # [M] fp32
    begin,
    R,
    M,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile: its rows, columns, cells, which of them exist and which are positives, and the similarities."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (rows < R)[:, None] & (columns < M)[None, :]
    cells = rows.to(tl.int64)[:, None] * M + columns[None, :]
    s = tl.load(products + cells, mask=inside, other=0.0)
    s = s * tl.load(row_inverse + rows, mask=rows < R, other=0.0)[:, None]
    s = s * tl.load(column_inverse + columns, mask=columns < M, other=0.0)[None, :]
    return rows, columns, cells, inside, (rows + begin)[:, None] == columns[None, :], s


@triton.jit
def online_sum_kernel(
    products,  # [R, M] fp32
    row_inverse,  # [R] fp32
    column_inverse,  # [M] fp32
    positive,  # [R] fp32 out: logits of the positives
    row_maximum,  # [column tiles, R] fp32 out
    row_sum,  # [column tiles, R] fp32 out: of exponentials relative to the maximum, over the negatives
    column_maximum,  # [row tiles, M] fp32 out; only COLUMNS
    column_sum,  # [row tiles, M] fp32 out; only COLUMNS
    scale,
    begin,
    R,
    M,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COLUMNS: tl.constexpr,
    TENSOR_SCALE: tl.constexpr,
):
    """Maxima and sums of exponentials of one tile's rows and columns, positives left out."""
    rows, columns, _, inside, own, s = load_similarities(
        products, row_inverse, column_inverse, begin, R, M, BLOCK_R, BLOCK_C
    )
    s = s * load_scalar(scale, TENSOR_SCALE)
    tl.store(positive + rows[:, None] + tl.zeros_like(columns)[None, :], s, mask=own & inside)
    counted = inside & (own == 0)
    s = tl.where(counted, s, LOWEST)
    highest = tl.max(s, 1)
    e = tl.where(counted, tl.exp2((s - highest[:, None]) * LOG2E), 0.0)
    place = tl.program_id(1).to(tl.int64) * R + rows
    tl.store(row_maximum + place, highest, mask=rows < R)
    tl.store(row_sum + place, tl.sum(e, 1), mask=rows < R)
    if COLUMNS:
        highest = tl.max(s, 0)
        e = tl.where(counted, tl.exp2((s - highest[None, :]) * LOG2E), 0.0)
        place = tl.program_id(0).to(tl.int64) * M + columns
        tl.store(column_maximum + place, highest, mask=columns < M)
        tl.store(column_sum + place, tl.sum(e, 0), mask=columns < M)


@triton.jit
def softmax_weight_kernel(
    products,  # [R, M] fp32
    weights,  # [R, M] out, bf16 or (in place of the products) fp32
    row_inverse,  # [R] fp32
    column_inverse,  # [M] fp32
    row_log,  # [2, R] fp32: log of the normalisers as the sum of two numbers; only ROWS
    row_coef,  # [R] fp32; only ROWS
    column_log,  # [2, M] fp32; only COLUMNS
    column_coef,  # [M] fp32; only COLUMNS
    row_missed,  # [column tiles, R] fp32 out: sums of p over the negatives; only ROWS
    column_missed,  # [row tiles, M] fp32 out; only COLUMNS
    scale,
    begin,
    R,
    M,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TENSOR_SCALE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """(coef_i p_ij + coef_j p_ji) / (|x_i| |y_j|): the weights that raw rows are multiplied with."""
    rows, columns, cells, inside, own, s = load_similarities(
        products, row_inverse, column_inverse, begin, R, M, BLOCK_R, BLOCK_C
    )
    s = s * load_scalar(scale, TENSOR_SCALE)
    counted = inside & (own == 0)
    g = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    if ROWS:
        high = tl.load(row_log + rows, mask=rows < R, other=0.0)
        low = tl.load(row_log + R + rows, mask=rows < R, other=0.0)
        p = tl.where(counted, tl.exp2(((s - high[:, None]) - low[:, None]) * LOG2E), 0.0)
        tl.store(row_missed + tl.program_id(1).to(tl.int64) * R + rows, tl.sum(p, 1), mask=rows < R)
        g += p * tl.load(row_coef + rows, mask=rows < R, other=0.0)[:, None]
    if COLUMNS:
        high = tl.load(column_log + columns, mask=columns < M, other=0.0)
        low = tl.load(column_log + M + columns, mask=columns < M, other=0.0)
        p = tl.where(counted, tl.exp2(((s - high[None, :]) - low[None, :]) * LOG2E), 0.0)
        tl.store(column_missed + tl.program_id(0).to(tl.int64) * M + columns, tl.sum(p, 0), mask=columns < M)
        g += p * tl.load(column_coef + columns, mask=columns < M, other=0.0)[None, :]
    store_weights(weights, cells, inside, g, row_inverse, column_inverse, rows, columns, R, M, UPCAST)


@triton.jit
def store_weights(weights, cells, inside, g, row_inverse, column_inverse, rows, columns, R, M, UPCAST: tl.constexpr):
    """g divided by both rows' norms, in the dtype of `weights`."""
    g = g * tl.load(row_inverse + rows, mask=rows < R, other=0.0)[:, None]
    g = g * tl.load(column_inverse + columns, mask=columns < M, other=0.0)[None, :]
    if weights.dtype.element_ty == tl.bfloat16:
        g = round_bf16(g, UPCAST)
    tl.store(weights + cells, g, mask=inside)


@triton.jit
def sigmoid_weight_kernel(
    products,  # [R, M] fp32
    weights,  # [R, M] out, bf16 or (in place of the products) fp32; only ROW_COEF or COLUMN_COEF
    row_inverse,  # [R] fp32
    column_inverse,  # [M] fp32
    coef,  # [R] (ROW_COEF) or [M] (COLUMN_COEF) fp32
    loss,  # [column tiles, R] fp32 out; only LOSS
    slope,  # [column tiles, R] fp32 out: sums of the derivatives with respect to the logits; only ROW_COEF
    scale,
    bias,
    begin,
    R,
    M,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOSS: tl.constexpr,
    ROW_COEF: tl.constexpr,
    COLUMN_COEF: tl.constexpr,
    TENSOR_SCALE: tl.constexpr,
    TENSOR_BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Losses of the pairs of one tile, and the weights that raw rows are multiplied with."""
    rows, columns, cells, inside, own, s = load_similarities(
        products, row_inverse, column_inverse, begin, R, M, BLOCK_R, BLOCK_C
    )
    sign = tl.where(own, -1.0, 1.0)
    x = sign * (s * load_scalar(scale, TENSOR_SCALE) + load_scalar(bias, TENSOR_BIAS))
    place = tl.program_id(1).to(tl.int64) * R + rows
    if LOSS:
        tl.store(loss + place, tl.sum(tl.where(inside, softplus(x), 0.0), 1), mask=rows < R)
    if ROW_COEF or COLUMN_COEF:
        u = tl.exp2(-tl.abs(x) * LOG2E)
        g = tl.where(inside, sign * tl.where(x > 0, 1.0, u) / (1.0 + u), 0.0)
        if ROW_COEF:
            tl.store(slope + place, tl.sum(g, 1), mask=rows < R)
            g = g * tl.load(coef + rows, mask=rows < R, other=0.0)[:, None]
        else:
            g = g * tl.load(coef + columns, mask=columns < M, other=0.0)[None, :]
        store_weights(weights, cells, inside, g, row_inverse, column_inverse, rows, columns, R, M, UPCAST)
