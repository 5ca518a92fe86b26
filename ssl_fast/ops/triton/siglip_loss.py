"""SigLIP's loss on a GPU: products by cuBLAS, losses and their derivatives by Triton, in one pass over the pairs.

Letters: M pairs of all ranks, R of them wanted, D embedding.

Work: 6 M^2 D FLOP for all pairs of one process. With pairs of other ranks each tower's own rows meet all rows of the
other, and both gradients are complete without any communication. The steps follow a fixed order without atomics, and
nothing is read back by the host.

Reference: Zhai et al. 2023, arXiv:2303.15343, Alg. 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import tiles
from .tiles import unavailable as unavailable
from .towers import Tower, chunks, grid, multiply, options, weights_like


def forward(
    image: Tensor,  # [M, D]
    text: Tensor,  # [M, D]
    coef: Tensor | None,  # [M]
    rows: tuple[int, int],
    scale: float | Tensor,
    bias: float | Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Loss [R] of the images begin..end and, given `coef`, the gradients of sum_i coef_i loss_i over all images i.

    dimage, dtext [R, D] of the pairs begin..end, and these images' shares [R] of d/dscale and d/dbias.
    """
    numbers = tiles.device_scalar(scale, image.device), tiles.device_scalar(bias, image.device)
    coef = None if coef is None else coef.float().contiguous()
    mine, whole = slice(*rows), rows == (0, len(image))
    with torch.autocast(image.device.type, enabled=False), tiles.on_device(image):
        u, v = Tower(image, normalize), Tower(text, normalize)
        loss, slope, du, dv = _pass(u, v, rows, coef, True, numbers, whole)
        if coef is None:
            return loss, None, None, None, None
        if not whole:
            dv = _pass(v, u, rows, coef, False, numbers, False)[2]
    # The weights carry 1 / norm of both rows; a row's own is taken back here.
    du, dv = du * u.norm[mine, None], dv * v.norm[mine, None]
    dscale = (u.unit(mine) * du).sum(1)
    return loss, u.finish(du * numbers[0], mine), v.finish(dv * numbers[0], mine), dscale, slope * coef[mine]


def _pass(
    a: Tower,
    b: Tower,
    rows: tuple[int, int],
    coef: Tensor | None,  # [M], of images
    from_image: bool,
    numbers: tuple[float | Tensor, float | Tensor],
    both: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and slope [R] of a's rows (images alone), weights times b [R, D], transposed times a [M, D] (if `both`)."""
    from .towers_kernels import sigmoid_weight_kernel

    num_columns, dim = b.rows.shape
    wanted = 0 if coef is None else dim
    da = torch.empty(rows[1] - rows[0], wanted, device=a.rows.device)
    db = torch.zeros(num_columns if both else 0, wanted, device=a.rows.device)
    loss, slope = da.new_empty(len(da)), da.new_empty(len(da))
    for begin, end in chunks(rows, num_columns):
        down, across = grid(end - begin, num_columns)
        parts = da.new_zeros(2, across, end - begin)
        products = multiply(a.rows[begin:end], b.rows.T)
        weights = weights_like(products, a.rows)
        sigmoid_weight_kernel[(down, across)](
            products,
            weights,
            a.inverse[begin:end],
            b.inverse,
            coef[begin:end] if coef is not None and from_image else coef,
            *parts,
            *numbers,
            begin,
            end - begin,
            num_columns,
            LOSS=from_image,
            ROW_COEF=coef is not None and from_image,
            COLUMN_COEF=coef is not None and not from_image,
            TENSOR_SCALE=isinstance(numbers[0], Tensor),
            TENSOR_BIAS=isinstance(numbers[1], Tensor),
            UPCAST=tiles.interpreted(),
            **options(),
        )
        here = slice(begin - rows[0], end - rows[0])
        loss[here], slope[here] = parts.sum(1)
        if coef is not None:
            da[here] = multiply(weights, b.rows)
            if both:
                db += multiply(weights.T, a.rows[begin:end])
    return loss, slope, da, db
