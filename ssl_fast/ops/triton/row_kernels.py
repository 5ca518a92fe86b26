# mypy: ignore-errors
"""Device code that walks whole rows: BYOL's distance, and the gradient of rows that were normalised."""

import triton
import triton.language as tl

from .blocks import load_scalar, load_unit_rows


@triton.jit
def distance_kernel(
    p,  # [N, D]
    z,  # [N, D]
    distance,  # [N] fp32 out
    dp,  # [N, D] fp32 out; only WITH_GRAD
    N,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EPS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    """|u - v|^2 of the unit rows u of p and v of z, and its gradient 2 (u - v - u <u, u - v>) / |p|.

    Taken from the difference, which keeps its digits where the rows align; 1 - cos does not.
    """
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = rows < N
    u, norm = load_unit_rows(p, rows, valid, D, BLOCK_D, EPS, NORMALIZE)
    v, _ = load_unit_rows(z, rows, valid, D, BLOCK_D, EPS, NORMALIZE)
    apart = u - v
    tl.store(distance + rows, tl.sum(apart * apart, 1), mask=valid)
    if WITH_GRAD:
        if NORMALIZE:  # below the clamp the norm is a constant
            along = tl.where(norm > EPS, tl.sum(u * apart, 1), 0.0)
            apart = (apart - u * along[:, None]) / norm[:, None]
        columns = tl.arange(0, BLOCK_D)
        cells = rows.to(tl.int64)[:, None] * D + columns[None, :]
        tl.store(dp + cells, 2.0 * apart, mask=valid[:, None] & (columns < D)[None, :])


@triton.jit
def unit_gradient_kernel(
    g,  # [N, D] fp32: the gradient of the unit rows, over their norms
    x,  # [N, D] raw rows
    out,  # [N, D] fp32 out; may be g
    scale,
    N,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EPS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    TENSOR_SCALE: tl.constexpr,
):
    """scale times the gradient of the raw rows. Below the clamp the norm is a constant."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_D)
    cells = rows.to(tl.int64)[:, None] * D + columns[None, :]
    inside = (rows < N)[:, None] & (columns < D)[None, :]
    dz = tl.load(g + cells, mask=inside, other=0.0)
    if NORMALIZE:
        z, norm = load_unit_rows(x, rows, rows < N, D, BLOCK_D, EPS, NORMALIZE)
        dz -= z * tl.where(norm > EPS, tl.sum(z * dz, 1), 0.0)[:, None]
    tl.store(out + cells, dz * load_scalar(scale, TENSOR_SCALE), mask=inside)
