# mypy: ignore-errors
"""Device code of nt_xent (see nt_xent.py for the algorithm and the letters).

s_ij = inv_temperature <z_i, z_j>. The sums run over the negatives of a row: neither the row itself nor its positive,
whose logits are set to a finite value so low that its exponential is zero. Only tiles that can contain such a pair, or
padding, pay for the mask. BOUNDED: exponentials relative to the fixed offset inv_temperature, the largest logit of
unit vectors.
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
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], LOWEST, tl.float32)
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
    if not BOUNDED:
        tl.store(maximum + target, largest, mask=row_valid)


@triton.jit
def loss_kernel(
    maximum,  # [parts, R] fp32; not read when BOUNDED
    partial,  # [parts, R] fp32
    cosine,  # [N] fp32 of each row with its positive
    loss,  # [R] fp32 out
    log_l,  # [R] fp32 out: log of the total normaliser, positive included
    inv_temperature,
    begin,
    R,
    parts,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BOUNDED: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
):
    """Adds the parts up in a fixed order; loss = softplus(log l_negatives - s_positive)."""
    inv = load_scalar(inv_temperature, TENSOR_TEMPERATURE)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = rows < R
    part = tl.arange(0, BLOCK_P)
    cells = part.to(tl.int64)[:, None] * R + rows[None, :]
    inside = (part < parts)[:, None] & valid[None, :]
    sums = tl.load(partial + cells, mask=inside, other=0.0)
    if BOUNDED:
        log_negatives = inv + tl.log(tl.sum(sums, 0))
    else:
        maxima = tl.load(maximum + cells, mask=inside, other=LOWEST)
        largest = tl.max(maxima, 0)
        total = tl.sum(sums * tl.exp2((maxima - largest[None, :]) * LOG2E), 0)
        log_negatives = largest + tl.log(total)
    s = inv * tl.load(cosine + begin + rows, mask=valid, other=0.0)
    # No negative at all (two rows): log_negatives = -inf, and the loss is 0.
    gap = log_negatives - s
    row_loss = softplus(gap)
    tl.store(loss + rows, row_loss, mask=valid)
    tl.store(log_l + rows, s + row_loss, mask=valid)


@triton.jit
def backward_kernel(
    z,  # [padded N, PLANES * CHUNKS * BLOCK_D] bf16
    positive,  # [N] int64
    coef,  # [N] fp32
    log_l,  # [N] fp32
    weight,  # [N] fp32: coef_j exp(inv_temperature - log_l_j) when BOUNDED, else not read
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
    PLANES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """G = E (coef_i / l_i + coef_j / l_j) and G @ Z for a tile of rows, one part of the columns, one chunk of z."""
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


@triton.jit
def weight_kernel(coef, log_l, weight, inv_temperature, N, BLOCK: tl.constexpr):
    """weight_j = coef_j exp(inv_temperature - log_l_j): coef_j / l_j relative to the fixed offset."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = rows < N
    log_ratio = inv_temperature - tl.load(log_l + rows, mask=valid, other=0.0)
    c = tl.load(coef + rows, mask=valid, other=0.0)
    tl.store(weight + rows, c * tl.exp2(log_ratio * LOG2E), mask=valid)


@triton.jit
def finish_kernel(
    x,  # [N, D] raw embeddings
    positive,  # [N] int64
    coef,  # [N] fp32
    log_l,  # [N] fp32
    dz,  # [splits, R, WIDTH] fp32 from backward_kernel
    missed,  # [splits, R] fp32 from backward_kernel
    dx,  # [R, D] fp32 out
    zdz,  # [R] fp32 out: <z_i, dz_i>
    inv_temperature,
    begin,
    R,
    splits,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EPS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
):
    """Adds the parts up in order, adds the positive pairs in fp32, applies 1/temperature and the norm's backward."""
    inv = load_scalar(inv_temperature, TENSOR_TEMPERATURE)
    local = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = local < R
    rows = begin + local
    partners = tl.load(positive + rows, mask=valid, other=0)
    near = valid & (partners >= begin) & (partners < begin + R)  # the partner's row sum is at hand
    d = tl.arange(0, BLOCK_D)
    g = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    mine = tl.zeros([BLOCK_R], tl.float32)
    other = tl.zeros([BLOCK_R], tl.float32)
    for part in range(splits):
        offset = tl.cast(part, tl.int64) * R
        cells = (offset + local)[:, None] * WIDTH + d[None, :]
        g += tl.load(dz + cells, mask=valid[:, None] & (d < WIDTH)[None, :], other=0.0)
        mine += tl.load(missed + offset + local, mask=valid, other=0.0)
        other += tl.load(missed + offset + partners - begin, mask=near, other=0.0)
    z, norm = load_unit_rows(x, rows, valid, D, BLOCK_D, EPS, NORMALIZE)
    z_positive, _ = load_unit_rows(x, partners, valid, D, BLOCK_D, EPS, NORMALIZE)
    log_p = inv * tl.sum(z * z_positive, 1) - tl.load(log_l + partners, mask=valid, other=0.0)
    other = tl.where(near, other, 1.0 - tl.exp2(log_p * LOG2E))
    pull = tl.load(coef + rows, mask=valid, other=0.0) * mine + tl.load(coef + partners, mask=valid, other=0.0) * other
    g, along = normalize_backward(inv * (g - pull[:, None] * z_positive), z, norm, EPS, NORMALIZE)
    tl.store(dx + local.to(tl.int64)[:, None] * D + d[None, :], g, mask=valid[:, None] & (d < D)[None, :])
    tl.store(zdz + local, along, mask=valid)
