"""CLIP's loss on a GPU: products by cuBLAS, the softmax in both directions by Triton, no N x N matrix.

Letters: M pairs of all ranks, R of them wanted, D embedding, S directions (1: image to text; 2: and back).

    forward     per chunk of rows: products, maxima and sums of exponentials of its tiles' rows and columns
    backward    per chunk: products again, their weights in place, two products into the gradients

Work: 8 M^2 D FLOP for all pairs of one process. With pairs of other ranks each tower's own rows meet all rows of the
other, and both gradients are complete without any communication. The steps follow a fixed order without atomics, and
nothing is read back by the host.

Reference: Radford et al. 2021, arXiv:2103.00020, Fig. 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import tiles
from .tiles import unavailable as unavailable
from .towers import Tower, chunks, grid, multiply, options, weights_like

_Sums = tuple[Tensor, Tensor]  # maxima and sums of exponentials relative to them
_Side = tuple[Tensor, Tensor] | None  # coef [M] and log of the normalisers [2, M]; None: it is not asked for


def forward(
    image: Tensor,  # [M, D]
    text: Tensor,  # [M, D]
    rows: tuple[int, int],
    scale: float | Tensor,
    normalize: bool,
    sides: int,
) -> tuple[Tensor, Tensor]:
    """Loss [S, R] and log of the whole normaliser [S, R], float64, of the pairs begin..end in each direction."""
    scale = tiles.device_scalar(scale, image.device)
    with torch.autocast(image.device.type, enabled=False), tiles.on_device(image):
        u, v = Tower(image, normalize), Tower(text, normalize)
        both = sides == 2 and rows == (0, len(image))
        positive, of_images, of_texts = _sums(u, v, rows, scale, both)
        if sides == 2 and not both:
            of_texts = _sums(v, u, rows, scale, False)[1]
    highest, total = (torch.stack([side[k] for side in (of_images, of_texts)[:sides]]) for k in range(2))
    log_negative, positive = highest.double() + total.double().log(), positive.double()
    loss = F.softplus(log_negative - positive, threshold=60)
    return loss.float(), positive + loss


def _sums(
    a: Tower, b: Tower, rows: tuple[int, int], scale: float | Tensor, columns: bool
) -> tuple[Tensor, _Sums, _Sums]:
    """Logits of the positives [R], and of the negatives of a's rows [R] and (if asked) of all of b's [M] the sums."""
    from .towers_kernels import online_sum_kernel

    device, num_columns = a.rows.device, len(b.rows)
    positive = torch.zeros(rows[1] - rows[0], device=device)
    of_rows = [(positive.new_empty(0), positive.new_empty(0))]
    of_columns = (positive.new_full((num_columns,), -1e30), positive.new_zeros(num_columns))
    for begin, end in chunks(rows, num_columns):
        down, across = grid(end - begin, num_columns)
        parts = [positive.new_empty(2, across, end - begin), positive.new_empty(2, down, num_columns if columns else 0)]
        online_sum_kernel[(down, across)](
            multiply(a.rows[begin:end], b.rows.T),
            a.inverse[begin:end],
            b.inverse,
            positive[begin - rows[0] :],
            *parts[0],
            *parts[1],
            scale,
            begin,
            end - begin,
            num_columns,
            COLUMNS=columns,
            TENSOR_SCALE=isinstance(scale, Tensor),
            **options(),
        )
        of_rows.append(_merged(*parts[0]))
        if columns:
            of_columns = _merged(*(torch.cat((old[None], new)) for old, new in zip(of_columns, parts[1], strict=True)))
    return positive, (torch.cat([m for m, _ in of_rows]), torch.cat([s for _, s in of_rows])), of_columns


def _merged(
    maxima: Tensor,  # [parts, N]
    sums: Tensor,  # [parts, N]
) -> _Sums:
    """The parts' sums on one scale, each [N]."""
    highest = maxima.amax(0)
    return highest, (sums * (maxima - highest).exp_()).sum(0)


def backward(
    image: Tensor,  # [M, D]
    text: Tensor,  # [M, D]
    coef: Tensor,  # [S, M]
    log_l: Tensor,  # [S, M] float64
    rows: tuple[int, int],
    scale: float | Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """d(sum coef loss)/dimage [R, D], d/dtext [R, D] of the pairs begin..end, and their shares [R] of d/dscale."""
    scale = tiles.device_scalar(scale, image.device)
    mine, sides, both = slice(*rows), len(coef), rows == (0, len(image))
    with torch.autocast(image.device.type, enabled=False), tiles.on_device(image):
        u, v = Tower(image, normalize), Tower(text, normalize)
        to_text, to_image = [_side(coef[side], log_l[side]) for side in range(sides)] + [None] * (2 - sides)
        du, dv, u_missed, v_missed = _weighted(u, v, rows, to_text, to_image, scale, both)
        if not both:
            dv, _, v_missed, _ = _weighted(v, u, rows, to_image, to_text, scale, False)
    pull = (coef[0, mine] * u_missed + (coef[1, mine] * v_missed if sides == 2 else 0))[:, None]
    u_unit, v_unit = u.unit(mine), v.unit(mine)
    # The weights carry 1 / norm of both rows; a row's own is taken back here.
    du = du * u.norm[mine, None] - pull * v_unit
    dv = dv * v.norm[mine, None] - pull * u_unit
    dscale = (u_unit * du).sum(1)
    return u.finish(du * scale, mine), v.finish(dv * scale, mine), dscale


def _side(coef: Tensor, log_l: Tensor) -> tuple[Tensor, Tensor]:
    high = log_l.float()
    return coef.float().contiguous(), torch.stack((high, (log_l - high).float()))


def _weighted(
    a: Tower,
    b: Tower,
    rows: tuple[int, int],
    of_rows: _Side,
    of_columns: _Side,
    scale: float | Tensor,
    both: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights times b [R, D], transposed times a [M, D] (if `both`), and 1 - p_positive of rows [R] and columns [M]."""
    from .towers_kernels import softmax_weight_kernel

    num_columns, dim = b.rows.shape
    da = torch.empty(rows[1] - rows[0], dim, device=a.rows.device)
    db = torch.zeros(num_columns if both else 0, dim, device=a.rows.device)
    row_missed, column_missed = da.new_zeros(len(da)), da.new_zeros(num_columns)
    for begin, end in chunks(rows, num_columns):
        down, across = grid(end - begin, num_columns)
        missed = da.new_zeros(across, end - begin), da.new_zeros(down, num_columns)
        products = multiply(a.rows[begin:end], b.rows.T)
        weights = weights_like(products, a.rows)
        softmax_weight_kernel[(down, across)](
            products,
            weights,
            a.inverse[begin:end],
            b.inverse,
            None if of_rows is None else of_rows[1][:, begin:end].contiguous(),
            None if of_rows is None else of_rows[0][begin:end],
            None if of_columns is None else of_columns[1],
            None if of_columns is None else of_columns[0],
            *missed,
            scale,
            begin,
            end - begin,
            num_columns,
            ROWS=of_rows is not None,
            COLUMNS=of_columns is not None,
            TENSOR_SCALE=isinstance(scale, Tensor),
            UPCAST=tiles.interpreted(),
            **options(),
        )
        here = slice(begin - rows[0], end - rows[0])
        da[here], row_missed[here] = multiply(weights, b.rows), missed[0].sum(0)
        if both:
            db += multiply(weights.T, a.rows[begin:end])
            column_missed += missed[1].sum(0)
    return da, db, row_missed, column_missed
