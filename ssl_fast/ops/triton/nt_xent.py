"""NT-Xent, SupCon and DCL in Triton: symmetric forward over triangular tiles, row-owned backward, no N x N matrix.

Letters: N rows (all views and ranks), R the rows wanted, D embedding; s_ij = inv_temperature <z_i, z_j>;
l_i = sum over j != i of exp(s_ij); loss_i = log l_i - s_i,positive.

    unit rows   z as a sum of bfloat16 numbers (1 for bf16, 2 for fp16, 3 for fp32), fp32 cosines of the positives
    triangle    row and column sums of each tile once (all rows, bounded logits), or
    row_sum     row sums, with the online maximum where logits may be large (any rows)
    loss        parts added up in a fixed order; softplus(log l_negatives - s_positive)
    backward    G = E (coef_i / l_i + coef_j / l_j), G @ Z per tile of rows
    finish      positive pairs in fp32, 1 / temperature, the norm's backward

Work: N^2 D multiply-adds forward (2 N^2 D with the online maximum) and 4 N^2 D FLOP backward; beyond D = 256 every
chunk of 128 numbers of the gradient computes the similarities again. Extra memory: at most 63 floats a row forward,
`splits` fp32 rows backward. `positive` is an involution, as two views give it. Results are bit-reproducible, nothing
is read back by the host, and a CUDA graph can capture both calls.

With classes (SupCon) the forward is row_sum, which adds the positives' cosines up beside the exponentials; the backward
takes 1 / |P| from G inside the tile, in fp32. A class of two rows is a pair as above.

Reference: Chen et al. 2020, arXiv:2002.05709, Eq. 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_fast.ops.classes import Classes

from . import tiles
from .rows import EPS, row_block, unit_rows
from .tiles import unavailable as unavailable

SLABS = 32  # at least, once there are that many tiles: 528 programs of equal work, 4 whole waves on 132 processors


def forward(
    x: Tensor,  # [N, D]
    positive: Tensor,  # [N] int64
    rows: tuple[int, int],  # begin, end: R = end - begin
    inv_temperature: float | Tensor,
    normalize: bool,
    classes: Classes | None = None,
    decoupled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Losses [R] and log-normalisers [R] (positive included), fp32, of rows begin ... end - 1.

    `decoupled`: the positive is in no normaliser. log_l is infinite for a row that has no loss.
    """
    inv_temperature = tiles.device_scalar(inv_temperature, x.device)
    x, positive = x.contiguous(), positive.contiguous()
    begin, end = rows
    loss = torch.empty(end - begin, dtype=torch.float32, device=x.device)
    log_l = torch.empty_like(loss)
    if end == begin:
        return loss, log_l
    sums: tuple[Tensor | None, Tensor, Tensor | None]  # as _row_sums returns them
    with tiles.on_device(x):
        cosine = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
        z = unit_rows(x, normalize, tiles.planes(x.dtype), positive, cosine)
        if tiles.bounded(inv_temperature, normalize) and rows == (0, x.shape[0]) and classes is None:
            sums = None, _triangle(z, x, positive, inv_temperature), None
        else:
            sums = _row_sums(z, x, positive, rows, inv_temperature, normalize, classes)
        _reduce(*sums, cosine, loss, log_l, begin, inv_temperature, classes, decoupled)
    return loss, log_l


def backward(
    x: Tensor,  # [N, D]
    positive: Tensor,  # [N] int64
    coef: Tensor,  # [N] fp32: gradient of the objective with respect to each row's loss
    log_l: Tensor,  # [N] fp32 of all rows
    rows: tuple[int, int],  # begin, end
    inv_temperature: float | Tensor,
    normalize: bool,
    classes: Classes | None = None,
    decoupled: bool = False,
) -> tuple[Tensor, Tensor]:
    """dx [R, D] fp32 of sum_i coef_i loss_i over all rows i, and zdz [R]: <z_i, dz_i> before the norm's backward."""
    inv_temperature = tiles.device_scalar(inv_temperature, x.device)
    x, positive = x.contiguous(), positive.contiguous()
    begin, end = rows
    dx = torch.empty(end - begin, x.shape[1], dtype=torch.float32, device=x.device)
    zdz = torch.empty(end - begin, dtype=torch.float32, device=x.device)
    if end == begin:
        return dx, zdz
    with tiles.on_device(x):
        z = unit_rows(x, normalize, tiles.planes(x.dtype))
        coef, log_l = coef.contiguous(), log_l.contiguous()
        dz, missed = _weighted_sums(z, x, positive, coef, log_l, rows, inv_temperature, normalize, classes)
        _finish(x, positive, coef, log_l, dz, missed, dx, zdz, begin, inv_temperature, normalize, decoupled)
    return dx, zdz


def _triangle(z: Tensor, x: Tensor, positive: Tensor, inv_temperature: float | Tensor) -> Tensor:
    """Sums of exponentials over the negatives, [slabs, N]; SLABS <= slabs < 2 SLABS given that many tiles."""
    from .nt_xent_kernels import triangle_kernel

    num_rows, dim = x.shape
    num_planes = tiles.planes(x.dtype)
    block_d, chunks = tiles.width(dim, num_planes)
    tile = tiles.tile("triangle", num_planes, dim, x.device)
    block = max(tile.block_m, tile.block_n)
    slab_rows = max(1, -(-num_rows // block) // SLABS) * block
    slabs = -(-num_rows // slab_rows)
    partial = torch.empty(slabs, num_rows, dtype=torch.float32, device=x.device)
    triangle_kernel[((slabs + 1) // 2 * (slabs + 1 - slabs % 2),)](
        z,
        positive,
        partial,
        inv_temperature,
        num_rows,
        slab_rows,
        slabs,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=block_d,
        CHUNKS=chunks,
        PLANES=num_planes,
        UPCAST=tiles.interpreted(),
        **tile.options(),
    )
    return partial


def _row_sums(
    z: Tensor,
    x: Tensor,
    positive: Tensor,
    rows: tuple[int, int],
    inv_temperature: float | Tensor,
    normalize: bool,
    classes: Classes | None,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Maxima (None when bounded), sums of exponentials and of the positives' cosines (classes), each [splits, R]."""
    from .nt_xent_kernels import row_sum_kernel

    num_rows, dim = x.shape
    num_planes = tiles.planes(x.dtype)
    block_d, chunks = tiles.width(dim, num_planes)
    tile = tiles.tile("row_sum" if classes is None else "class_row_sum", num_planes, dim, x.device)
    wanted = rows[1] - rows[0]
    row_tiles, parts, per_part = tiles.partition(wanted, num_rows, tile, x.device, most=16)
    bounded = tiles.bounded(inv_temperature, normalize)
    partial = torch.empty(parts, wanted, dtype=torch.float32, device=x.device)
    maximum = None if bounded else torch.empty_like(partial)
    attracted = None if classes is None else torch.empty_like(partial)
    row_sum_kernel[(row_tiles, parts)](
        z,
        positive,
        maximum,
        partial,
        None if classes is None else classes.ids,
        attracted,
        inv_temperature,
        num_rows,
        rows[0],
        wanted,
        per_part,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=block_d,
        CHUNKS=chunks,
        BOUNDED=bounded,
        TENSOR_TEMPERATURE=isinstance(inv_temperature, Tensor),
        CLASSES=classes is not None,
        PLANES=num_planes,
        UPCAST=tiles.interpreted(),
        **tile.options(),
    )
    return maximum, partial, attracted


def _reduce(
    maximum: Tensor | None,
    partial: Tensor,
    attracted: Tensor | None,
    cosine: Tensor,
    loss: Tensor,
    log_l: Tensor,
    begin: int,
    inv_temperature: float | Tensor,
    classes: Classes | None,
    decoupled: bool,
) -> None:
    from .nt_xent_row_kernels import loss_kernel

    parts, wanted = partial.shape
    block_r = 32
    loss_kernel[(-(-wanted // block_r),)](
        maximum,
        partial,
        cosine,
        None if classes is None else classes.num_positives,
        attracted,
        loss,
        log_l,
        inv_temperature,
        begin,
        wanted,
        parts,
        BLOCK_R=block_r,
        BLOCK_P=1 << (parts - 1).bit_length(),
        BOUNDED=maximum is None,
        TENSOR_TEMPERATURE=isinstance(inv_temperature, Tensor),
        CLASSES=classes is not None,
        DECOUPLED=decoupled,
        **tiles.ROW_OPTIONS,
    )


def _weighted_sums(
    z: Tensor,
    x: Tensor,
    positive: Tensor,
    coef: Tensor,
    log_l: Tensor,
    rows: tuple[int, int],
    inv_temperature: float | Tensor,
    normalize: bool,
    classes: Classes | None,
) -> tuple[Tensor, Tensor]:
    """G @ Z [splits, R, padded D] and 1 - p_positive [splits, R], one part of the columns each."""
    from .nt_xent_kernels import backward_kernel
    from .nt_xent_row_kernels import weight_kernel

    num_rows, dim = x.shape
    num_planes = tiles.planes(x.dtype)
    block_d, chunks = tiles.width(dim, num_planes)
    tile = tiles.tile("backward" if classes is None else "class_backward", num_planes, dim, x.device)
    wanted = rows[1] - rows[0]
    row_tiles, parts, per_part = tiles.partition(wanted, num_rows, tile, x.device, most=16)
    bounded = tiles.bounded(inv_temperature, normalize)
    weight = torch.empty_like(coef) if bounded else None
    if bounded:
        weight_kernel[(-(-num_rows // 1024),)](
            coef, log_l, weight, inv_temperature, num_rows, BLOCK=1024, **tiles.ROW_OPTIONS
        )
    ids, share = None, None
    if classes is not None:
        count = classes.num_positives
        ids, share = classes.ids, torch.where(count > 1, coef / count, 0)
    dz = torch.empty(parts, wanted, block_d * chunks, dtype=torch.float32, device=x.device)
    missed = torch.empty(parts, wanted, dtype=torch.float32, device=x.device)
    backward_kernel[(row_tiles, parts, chunks)](
        z,
        positive,
        coef,
        log_l,
        weight,
        ids,
        share,
        dz,
        missed,
        inv_temperature,
        num_rows,
        rows[0],
        wanted,
        per_part,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=block_d,
        CHUNKS=chunks,
        BOUNDED=bounded,
        TENSOR_TEMPERATURE=isinstance(inv_temperature, Tensor),
        CLASSES=classes is not None,
        PLANES=num_planes,
        UPCAST=tiles.interpreted(),
        **tile.options(),
    )
    return dz, missed


def _finish(
    x: Tensor,
    positive: Tensor,
    coef: Tensor,
    log_l: Tensor,
    dz: Tensor,
    missed: Tensor,
    dx: Tensor,
    zdz: Tensor,
    begin: int,
    inv_temperature: float | Tensor,
    normalize: bool,
    decoupled: bool,
) -> None:
    from .nt_xent_row_kernels import finish_kernel

    splits, wanted, width = dz.shape
    block_r, whole = row_block(width)
    finish_kernel[(-(-wanted // block_r),)](
        x,
        positive,
        coef,
        log_l,
        dz,
        missed,
        dx,
        zdz,
        inv_temperature,
        begin,
        wanted,
        splits,
        D=x.shape[1],
        WIDTH=width,
        BLOCK_R=block_r,
        BLOCK_D=whole,
        EPS=EPS,
        NORMALIZE=normalize,
        TENSOR_TEMPERATURE=isinstance(inv_temperature, Tensor),
        DECOUPLED=decoupled,
        **tiles.ROW_OPTIONS,
    )
