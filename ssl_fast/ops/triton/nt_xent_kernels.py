# mypy: ignore-errors
"""Device code of nt_xent that walks tiles of pairs (see nt_xent.py for the algorithm and the letters).

s_ij = inv_temperature <z_i, z_j>. The sums run over the negatives of a row: neither the row itself nor its positive,
whose logits are set to a finite value so low that its exponential is zero. Only tiles that can contain such a pair, or
padding, pay for the mask. BOUNDED: exponentials relative to the fixed offset inv_temperature, the largest logit of
unit vectors. CLASSES: positives are the rows of equal number in `classes`, negative numbers take no part; only a row
with one positive has it in `positive` (others have themselves there), and the labels are compared in every tile.
"""

import triton
import triton.language as tl

from .blocks import (
    LOG2E,
    LOWEST,
    dot_planes,
    load_planes,
    load_scalar,
    split,
)


@triton.jit
def similarity(
    z,  # [padded N, PLANES * CHUNKS * BLOCK_D] bf16
    a0,  # a [BLOCK_M, BLOCK_D], the planes of rows start_m ..., b [BLOCK_N, BLOCK_D] of rows start_n ...
    a1,
    a2,
    b0,
    b1,
    b2,
    start_m,
    start_n,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    PLANES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """<z_i, z_j> for a tile of rows i and columns j, [BLOCK_M, BLOCK_N] fp32; reads a and b itself if CHUNKS > 1."""
    s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if CHUNKS == 1:
        s = dot_planes(a0, a1, a2, tl.trans(b0), tl.trans(b1), tl.trans(b2), s, PLANES, PLANES, UPCAST)
    else:
        for chunk in range(CHUNKS):
            c0, c1, c2 = load_planes(z, start_m, chunk, BLOCK_M, BLOCK_D, CHUNKS, PLANES)
            d0, d1, d2 = load_planes(z, start_n, chunk, BLOCK_N, BLOCK_D, CHUNKS, PLANES)
            s = dot_planes(c0, c1, c2, tl.trans(d0), tl.trans(d1), tl.trans(d2), s, PLANES, PLANES, UPCAST)
    return s


@triton.jit
def needs_mask(start_m, start_n, lowest, highest, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether columns [start_n, +BLOCK_N) can meet rows [start_m, +BLOCK_M), their positives, or the end."""
    diagonal = (start_n < start_m + BLOCK_M) & (start_m < start_n + BLOCK_N)
    positives = (lowest < start_n + BLOCK_N) & (start_n <= highest)
    return diagonal | positives | (start_n + BLOCK_N > N)


@triton.jit
def load_class(classes, rows, valid):
    """Numbers of the rows' classes, -1 for rows that take no part or do not exist."""
    return tl.load(classes + rows, mask=valid, other=-1).to(tl.int32)


@triton.jit
def same_class(rows, columns, row_class, column_class):
    """Which columns are positives of which rows."""
    equal = (row_class[:, None] == column_class[None, :]) & (row_class >= 0)[:, None]
    return equal & (rows[:, None] != columns[None, :])


@triton.jit
def triangle_kernel(
    z,  # [padded N, PLANES * CHUNKS * BLOCK_D] bf16
    positive,  # [N] int64, an involution
    partial,  # [num_slabs, N] fp32 out: sum of exponentials of row i over the columns of a slab
    inv_temperature,
    N,
    slab_rows,  # rows of a slab, a multiple of both blocks
    num_slabs,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    PLANES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One pair of slabs (rows <= columns): its row sums and its column sums, so that each tile is computed once.

    A cell of `partial` belongs to one program: pair (I, J) owns [J, rows of I] and [I, rows of J]. Column sums stay
    in registers while the rows stream past; row sums are added up in place, in the order of the column tiles.
    """
    # Fold the triangle of pairs into a rectangle [ceil(num_slabs / 2), width].
    even = 1 - num_slabs % 2
    width = num_slabs + even
    row_slab = tl.program_id(0) // width
    column_slab = tl.program_id(0) % width - even
    if column_slab < row_slab:
        row_slab = num_slabs - row_slab - even
        column_slab = num_slabs - 1 - (column_slab + even)
    row_begin = row_slab * slab_rows
    row_end = tl.minimum(row_begin + slab_rows, N)
    column_begin = column_slab * slab_rows
    column_end = tl.minimum(column_begin + slab_rows, N)
    scale = inv_temperature * LOG2E
    row_sums = partial + column_slab.to(tl.int64) * N
    column_sums = partial + row_slab.to(tl.int64) * N
    written = row_begin  # rows before it hold the sums of earlier column tiles
    for start_n in range(column_begin, column_end, BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        column_valid = columns < N
        partners = tl.load(positive + columns, mask=column_valid, other=-1).to(tl.int32)
        highest = tl.max(partners, 0)
        lowest = tl.min(tl.where(column_valid, partners, N), 0)
        b0, b1, b2 = load_planes(z, start_n, 0, BLOCK_N, BLOCK_D, CHUNKS, PLANES)
        column_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        # Row sums of the previous column tile were stored by other threads of this program.
        tl.debug_barrier()
        for start_m in range(row_begin, row_end, BLOCK_M):
            rows = start_m + tl.arange(0, BLOCK_M)
            a0, a1, a2 = load_planes(z, start_m, 0, BLOCK_M, BLOCK_D, CHUNKS, PLANES)
            s = similarity(
                z, a0, a1, a2, b0, b1, b2, start_m, start_n, BLOCK_M, BLOCK_N, BLOCK_D, CHUNKS, PLANES, UPCAST
            )
            if needs_mask(start_n, start_m, lowest, highest, N, BLOCK_N, BLOCK_M) | (start_n + BLOCK_N > N):
                excluded = (rows[:, None] == columns[None, :]) | (rows[:, None] == partners[None, :])
                s = tl.where(excluded | (rows >= N)[:, None] | (columns >= N)[None, :], LOWEST, s)
            e = tl.exp2(s * scale - scale)
            column_acc += e
            before = tl.load(row_sums + rows, mask=rows < written, other=0.0)
            tl.store(row_sums + rows, before + tl.sum(e, 1), mask=rows < N)
        written = row_end
        if row_slab != column_slab:
            tl.store(column_sums + columns, tl.sum(column_acc, 0), mask=column_valid)


@triton.jit
def row_sum_kernel(
    z,  # [padded N, PLANES * CHUNKS * BLOCK_D] bf16
    positive,  # [N] int64
    maximum,  # [splits, R] fp32 out: largest logit; not written when BOUNDED
    partial,  # [splits, R] fp32 out: sum of exponentials relative to it
    classes,  # [N] int64; only CLASSES
    attracted,  # [splits, R] fp32 out: sum of <z_i, z_p> over the positives; only CLASSES
    inv_temperature,
    N,
    begin,
    R,
    columns_per_split,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    BOUNDED: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
    CLASSES: tl.constexpr,
    PLANES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Sums over one part of the columns for the rows begin ... begin + R - 1; online maximum unless BOUNDED."""
    inv = load_scalar(inv_temperature, TENSOR_TEMPERATURE)
    start_m = begin + tl.program_id(0) * BLOCK_M
    rows = start_m + tl.arange(0, BLOCK_M)
    row_valid = rows < begin + R
    partners = tl.load(positive + rows, mask=row_valid, other=-1).to(tl.int32)
    highest = tl.max(partners, 0)
    lowest = tl.min(tl.where(row_valid, partners, N), 0)
    a0, a1, a2 = load_planes(z, start_m, 0, BLOCK_M, BLOCK_D, CHUNKS, PLANES)
    if CLASSES:
        row_class = load_class(classes, rows, row_valid)
    pulled = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], LOWEST, tl.float32)
    column_begin = tl.program_id(1) * columns_per_split
    for start_n in range(column_begin, tl.minimum(column_begin + columns_per_split, N), BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        b0, b1, b2 = load_planes(z, start_n, 0, BLOCK_N, BLOCK_D, CHUNKS, PLANES)
        s = similarity(z, a0, a1, a2, b0, b1, b2, start_m, start_n, BLOCK_M, BLOCK_N, BLOCK_D, CHUNKS, PLANES, UPCAST)
        if CLASSES:
            column_class = load_class(classes, columns, columns < N)
            pulled += tl.sum(tl.where(same_class(rows, columns, row_class, column_class), s, 0.0), 1)
            s = tl.where((column_class < 0)[None, :], LOWEST, s)
        if not BOUNDED:
            s = tl.where(s == LOWEST, s, s * inv) if CLASSES else s * inv
        if needs_mask(start_m, start_n, lowest, highest, N, BLOCK_M, BLOCK_N):
            excluded = (rows[:, None] == columns[None, :]) | (partners[:, None] == columns[None, :])
            s = tl.where(excluded | (columns >= N)[None, :], LOWEST, s)
        if BOUNDED:
            total += tl.sum(tl.exp2(s * (inv * LOG2E) - inv * LOG2E), 1)
        else:
            previous = largest
            largest = tl.maximum(largest, tl.max(s, 1))
            # While nothing but excluded pairs was seen, largest = LOWEST and each of them would count as one.
            e = tl.where(s == LOWEST, 0.0, tl.exp2((s - largest[:, None]) * LOG2E))
            total = total * tl.exp2((previous - largest) * LOG2E) + tl.sum(e, 1)
    target = tl.program_id(1).to(tl.int64) * R + rows - begin
    tl.store(partial + target, total, mask=row_valid)
    if CLASSES:
        tl.store(attracted + target, pulled, mask=row_valid)
    if not BOUNDED:
        tl.store(maximum + target, largest, mask=row_valid)


@triton.jit
def backward_kernel(
    z,  # [padded N, PLANES * CHUNKS * BLOCK_D] bf16
    positive,  # [N] int64
    coef,  # [N] fp32
    log_l,  # [N] fp32
    weight,  # [N] fp32: coef_j exp(inv_temperature - log_l_j) when BOUNDED, else not read
    classes,  # [N] int64; only CLASSES
    share,  # [N] fp32: coef_j / number of its positives where those are several, else 0; only CLASSES
    dz,  # [splits, R, CHUNKS * BLOCK_D] fp32 out: sum_j G_ij z_j over one part of the columns
    missed,  # [splits, R] fp32 out: sum_j exp(s_ij - log_l_i), which adds up to 1 - p_positive
    inv_temperature,
    N,
    begin,
    R,
    columns_per_split,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    BOUNDED: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
    CLASSES: tl.constexpr,
    PLANES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """G = E (coef_i / l_i + coef_j / l_j) and G @ Z for a tile of rows, one part of the columns, one chunk of z.

    With CLASSES, share_i + share_j is taken from G where i and j are positives: before any rounding of G to bf16.
    """
    inv = load_scalar(inv_temperature, TENSOR_TEMPERATURE)
    start_m = begin + tl.program_id(0) * BLOCK_M
    rows = start_m + tl.arange(0, BLOCK_M)
    row_valid = rows < begin + R
    chunk = tl.program_id(2)
    partners = tl.load(positive + rows, mask=row_valid, other=-1).to(tl.int32)
    highest = tl.max(partners, 0)
    lowest = tl.min(tl.where(row_valid, partners, N), 0)
    row_log_l = tl.load(log_l + rows, mask=row_valid, other=0.0)
    if BOUNDED:
        row_weight = tl.load(weight + rows, mask=row_valid, other=0.0)
    else:
        row_weight = tl.load(coef + rows, mask=row_valid, other=0.0)
    a0, a1, a2 = load_planes(z, start_m, 0, BLOCK_M, BLOCK_D, CHUNKS, PLANES)
    if CLASSES:
        row_class = load_class(classes, rows, row_valid)
        row_share = tl.load(share + rows, mask=row_valid, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    column_begin = tl.program_id(1) * columns_per_split
    for start_n in range(column_begin, tl.minimum(column_begin + columns_per_split, N), BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        b0, b1, b2 = load_planes(z, start_n, 0, BLOCK_N, BLOCK_D, CHUNKS, PLANES)
        s = similarity(z, a0, a1, a2, b0, b1, b2, start_m, start_n, BLOCK_M, BLOCK_N, BLOCK_D, CHUNKS, PLANES, UPCAST)
        if not BOUNDED:
            s = s * inv
        if needs_mask(start_m, start_n, lowest, highest, N, BLOCK_M, BLOCK_N):
            excluded = (rows[:, None] == columns[None, :]) | (partners[:, None] == columns[None, :])
            s = tl.where(excluded | (columns >= N)[None, :], LOWEST, s)
        if CLASSES:
            column_class = load_class(classes, columns, columns < N)
            s = tl.where((row_class < 0)[:, None] | (column_class < 0)[None, :], LOWEST, s)
        if BOUNDED:
            e = tl.exp2(s * (inv * LOG2E) - inv * LOG2E)
            column_weight = tl.load(weight + columns, mask=columns < N, other=0.0)
            g = e * (row_weight[:, None] + column_weight[None, :])
        else:
            # The difference comes before log2(e): logits of hundreds would lose it to rounding.
            e = tl.exp2((s - row_log_l[:, None]) * LOG2E)
            column_log_l = tl.load(log_l + columns, mask=columns < N, other=0.0)
            column_weight = tl.load(coef + columns, mask=columns < N, other=0.0)
            g = e * row_weight[:, None] + tl.exp2((s - column_log_l[None, :]) * LOG2E) * column_weight[None, :]
        if CLASSES:
            column_share = tl.load(share + columns, mask=columns < N, other=0.0)
            pulls = row_share[:, None] + column_share[None, :]
            g -= tl.where(same_class(rows, columns, row_class, column_class), pulls, 0.0)
        total += tl.sum(e, 1)
        if CHUNKS > 1:
            b0, b1, b2 = load_planes(z, start_n, chunk, BLOCK_N, BLOCK_D, CHUNKS, PLANES)
        g0, g1, g2 = split(g, PLANES, UPCAST)
        acc = dot_planes(g0, g1, g2, b0, b1, b2, acc, PLANES, PLANES, UPCAST)
    if BOUNDED:
        total = total * tl.exp2((inv - row_log_l) * LOG2E)
    target = tl.program_id(1).to(tl.int64) * R + rows - begin
    if chunk == 0:
        tl.store(missed + target, total, mask=row_valid)
    d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    tl.store(dz + target[:, None] * (CHUNKS * BLOCK_D) + d[None, :], acc, mask=row_valid[:, None])
