# mypy: ignore-errors
"""Device code of nt_xent that walks rows, after the tiles (see nt_xent.py for the algorithm and the letters).

CLASSES: as in nt_xent_kernels.py. DECOUPLED: the positive is in no normaliser. A row without a loss has log_l = inf.
"""

import triton
import triton.language as tl

from .blocks import LOG2E, LOWEST, load_scalar, load_unit_rows, normalize_backward, softplus


@triton.jit
def loss_kernel(
    maximum,  # [parts, R] fp32; not read when BOUNDED
    partial,  # [parts, R] fp32
    cosine,  # [N] fp32 of each row with its positive
    num_positives,  # [N] int64; only CLASSES
    attracted,  # [parts, R] fp32; only CLASSES
    loss,  # [R] fp32 out
    log_l,  # [R] fp32 out: log of the total normaliser, positive included unless DECOUPLED; infinite without a loss
    inv_temperature,
    begin,
    R,
    parts,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BOUNDED: tl.constexpr,
    TENSOR_TEMPERATURE: tl.constexpr,
    CLASSES: tl.constexpr,
    DECOUPLED: tl.constexpr,
):
    """Adds the parts up in a fixed order; loss = softplus(log l_negatives - s_positive).

    DECOUPLED: without the softplus. Of several positives: log l - their mean logit.
    """
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
    if DECOUPLED:
        alone = log_negatives == float("-inf")
        row_loss = tl.where(alone, 0.0, gap)
        normaliser = tl.where(alone, float("inf"), log_negatives)
    else:
        row_loss = softplus(gap)
        normaliser = s + row_loss
    if CLASSES:
        count = tl.load(num_positives + begin + rows, mask=valid, other=0)
        mean = inv * tl.sum(tl.load(attracted + cells, mask=inside, other=0.0), 0) / tl.maximum(count, 1)
        row_loss = tl.where(count == 1, row_loss, tl.where(count == 0, 0.0, log_negatives - mean))
        normaliser = tl.where(count == 1, normaliser, tl.where(count == 0, float("inf"), log_negatives))
    tl.store(loss + rows, row_loss, mask=valid)
    tl.store(log_l + rows, normaliser, mask=valid)


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
    DECOUPLED: tl.constexpr,
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
    partner_log_l = tl.load(log_l + partners, mask=valid, other=0.0)
    if DECOUPLED:
        mine = tl.where(tl.load(log_l + rows, mask=valid, other=0.0) == float("inf"), 0.0, 1.0)
        other = tl.where(partner_log_l == float("inf"), 0.0, 1.0)
    else:
        log_p = inv * tl.sum(z * z_positive, 1) - partner_log_l
        other = tl.where(near, other, 1.0 - tl.exp2(log_p * LOG2E))
    pull = tl.load(coef + rows, mask=valid, other=0.0) * mine + tl.load(coef + partners, mask=valid, other=0.0) * other
    pull = tl.where(partners == rows, 0.0, pull)  # several positives, or none
    g, along = normalize_backward(inv * (g - pull[:, None] * z_positive), z, norm, EPS, NORMALIZE)
    tl.store(dx + local.to(tl.int64)[:, None] * D + d[None, :], g, mask=valid[:, None] & (d < D)[None, :])
    tl.store(zdz + local, along, mask=valid)
