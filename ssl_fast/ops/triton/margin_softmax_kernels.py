# mypy: ignore-errors
"""Device code of margin_softmax: what happens to a panel of products <x_i, w_js> between two matrix products.

M rows i, B classes j of the panel (the first is class `first`) with S centres s each. Raw rows are multiplied, so that
nothing is rounded before: the inverse norms make the products cosines here, in fp32. A program walks a strip of TILES
tiles, so that few numbers are left to add up; as a constant TILES would unroll the walk, and registers spill.
"""

import triton
import triton.language as tl

from .blocks import LOG2E, LOWEST, load_scalar, round_bf16


@triton.jit
def load_cosines(
    products,  # [M, B S] fp32, from the program's first row
    row_inverse,  # [M] fp32
    column_inverse,  # [B S] fp32
    target,  # [M] int64
    rows,
    columns,
    first,
    M,
    B,
    S: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One tile: its cells, which of them exist, which are targets; cosines with the nearest centres, and which."""
    inside = (rows < M)[:, None] & (columns < B)[None, :]
    cells = tl.arange(0, BLOCK_R)[:, None] * (B * S) + (columns * S)[None, :]  # from the program's first row
    over_row = tl.load(row_inverse + rows, mask=rows < M, other=0.0)[:, None]
    best = tl.full(inside.shape, LOWEST, tl.float32)
    centre = tl.zeros(inside.shape, tl.int32)
    for s in range(S):
        over_centre = tl.load(column_inverse + columns * S + s, mask=columns < B, other=0.0)[None, :]
        c = tl.load(products + cells + s, mask=inside, other=0.0) * over_row * over_centre
        nearer = (c > best) | (c != c)  # a number that is none stays visible
        best = tl.where(nearer, c, best)
        centre = tl.where(nearer, s, centre)
    local = tl.load(target + rows, mask=rows < M, other=-1) - first
    return cells, inside, columns[None, :] == local[:, None], best, centre


@triton.jit
def negative_value(c, threshold, hardness, rows, M, HARD: tl.constexpr, TENSOR_HARDNESS: tl.constexpr):
    """f and f' of a negative's cosine c: c (hardness + c) above the row's threshold, else c."""
    slope = tl.full(c.shape, 1.0, tl.float32)
    if HARD:
        t = load_scalar(hardness, TENSOR_HARDNESS)
        hard = c > tl.load(threshold + rows, mask=rows < M, other=0.0)[:, None]
        slope = tl.where(hard, t + 2.0 * c, slope)
        c = tl.where(hard, c * (t + c), c)
    return c, slope


@triton.jit
def class_sum_kernel(
    products,  # [M, B S] fp32
    row_inverse,  # [M] fp32
    column_inverse,  # [B S] fp32
    target,  # [M] int64
    threshold,  # [M] fp32; only HARD
    row_maximum,  # [strips, M] fp32 out
    row_sum,  # [strips, M] fp32 out: of exponentials relative to the maximum, over the negatives
    scale,
    hardness,
    first,
    M,
    B,
    TILES,
    S: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HARD: tl.constexpr,
    TENSOR_SCALE: tl.constexpr,
    TENSOR_HARDNESS: tl.constexpr,
):
    """Maxima and sums of exponentials of one strip's rows, targets left out."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    products += tl.program_id(0).to(tl.int64) * BLOCK_R * B * S
    highest = tl.full([BLOCK_R], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for tile in range(TILES):
        columns = (tl.program_id(1) * TILES + tile) * BLOCK_C + tl.arange(0, BLOCK_C)
        _, inside, own, c, _ = load_cosines(
            products, row_inverse, column_inverse, target, rows, columns, first, M, B, S, BLOCK_R
        )
        f, _ = negative_value(c, threshold, hardness, rows, M, HARD, TENSOR_HARDNESS)
        counted = inside & (own == 0)
        v = tl.where(counted, f * load_scalar(scale, TENSOR_SCALE), LOWEST)
        previous = highest
        highest = tl.maximum(highest, tl.max(v, 1))
        e = tl.where(counted, tl.exp2((v - highest[:, None]) * LOG2E), 0.0)
        total = total * tl.exp2((previous - highest) * LOG2E) + tl.sum(e, 1)
    place = tl.program_id(1).to(tl.int64) * M + rows
    tl.store(row_maximum + place, highest, mask=rows < M)
    tl.store(row_sum + place, total, mask=rows < M)


@triton.jit
def class_weight_kernel(
    products,  # [M, B S] fp32
    weights,  # [M, B S] out, bf16 or (in place of the products) fp32
    row_inverse,  # [M] fp32
    column_inverse,  # [B S] fp32
    target,  # [M] int64
    threshold,  # [M] fp32; only HARD
    lse,  # [M] fp32: log of the normalisers
    coef,  # [M] fp32: weights of the rows' negatives
    pull,  # [M] fp32: weights of their targets
    mean,  # [strips, M] fp32 out: coef sum_j p f
    scale,
    hardness,
    first,
    M,
    B,
    TILES,
    S: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HARD: tl.constexpr,
    TENSOR_SCALE: tl.constexpr,
    TENSOR_HARDNESS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """(coef_i p_ij f'_ij, or -pull_i at the target) / (|x_i| |w_js|) at the nearest centre s, 0 at the others."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    products += tl.program_id(0).to(tl.int64) * BLOCK_R * B * S
    weights += tl.program_id(0).to(tl.int64) * BLOCK_R * B * S
    log_l = tl.load(lse + rows, mask=rows < M, other=0.0)[:, None]
    push = tl.load(coef + rows, mask=rows < M, other=0.0)[:, None]
    at_target = -tl.load(pull + rows, mask=rows < M, other=0.0)[:, None]
    over_row = tl.load(row_inverse + rows, mask=rows < M, other=0.0)[:, None]
    total = tl.zeros([BLOCK_R], tl.float32)
    for tile in range(TILES):
        columns = (tl.program_id(1) * TILES + tile) * BLOCK_C + tl.arange(0, BLOCK_C)
        cells, inside, own, c, centre = load_cosines(
            products, row_inverse, column_inverse, target, rows, columns, first, M, B, S, BLOCK_R
        )
        f, slope = negative_value(c, threshold, hardness, rows, M, HARD, TENSOR_HARDNESS)
        p = tl.exp2((f * load_scalar(scale, TENSOR_SCALE) - log_l) * LOG2E)
        p = tl.where(inside & (own == 0), p, 0.0) * push
        total += tl.sum(p * f, 1)
        g = tl.where(own, at_target, p * slope) * over_row
        for s in range(S):
            over_centre = tl.load(column_inverse + columns * S + s, mask=columns < B, other=0.0)[None, :]
            weight = tl.where(centre == s, g * over_centre, 0.0)
            if weights.dtype.element_ty == tl.bfloat16:
                weight = round_bf16(weight, UPCAST)
            tl.store(weights + cells + s, weight, mask=inside)
    tl.store(mean + tl.program_id(1).to(tl.int64) * M + rows, total, mask=rows < M)
