"""Barlow Twins in plain torch with the gradient in closed form, on the Gram or on the correlation side.

a and b are the normalised columns of the two views, C = a^T b / N and c its diagonal. With
||a^T b||^2 = <a a^T, b b^T> (which is not ||a b^T||^2),

    sum_{i != j} C_ij^2 = <a a^T, b b^T> / N^2 - sum_i c_i^2,    its gradient by a: 2 b b^T a / N^2 - 2 b c / N,

and since b and a sum to zero down each column, so do these gradients: only their part along the column itself is taken
off when they go through the normalisation.
"""

import torch
from torch import Tensor

from ssl_fast.distributed import Group
from ssl_fast.ops.reference.two_views import TwoViews, squared_norm


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def forward(
    z1: Tensor,  # [n, D]
    z2: Tensor,  # [n, D]
    lambd: float,
    eps: float,
    group: Group,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss over all ranks [] and, when wanted, its gradients dz1, dz2 [n, D]; at least fp32.

    Collectives: the ranks' sizes; N < D: one gather of both views' rows and one sum of 1 number. Otherwise one sum of
    2 D numbers for the means, one for the variances and one of D^2. Gradients: one sum of 2 D numbers.
    """
    with torch.autocast(z1.device.type, enabled=False):
        both = TwoViews(z1, z2, group)
        N = max(both.num_rows, 1)
        a, b, inv_a, inv_b, scratch = _normalized(both, eps)
        own_a, own_b, own_scratch = a[both.mine], b[both.mine], scratch[both.mine]
        if both.gram:
            gram_a, gram_b = own_a @ a.T, own_b @ b.T  # [n, N] each
            diagonal = torch.mul(a, b, out=scratch).sum(0) / N
            (inner,) = both.over_ranks((gram_a * gram_b).sum(dtype=torch.float64) / N**2)
            off_diagonal = inner - diagonal.double().square().sum()
        else:
            correlation = both.over_ranks(a.T @ b)[0] / N  # [D, D]
            diagonal = correlation.diagonal().clone()
            off_diagonal = squared_norm(correlation.fill_diagonal_(0))
        value = (squared_norm(1 - diagonal) + lambd * off_diagonal).to(a.dtype)
        if both.num_rows == 0:
            value = value * 0
        if not with_grad:
            return value, None, None
        column = (diagonal - 1) * (2 / N)
        if both.gram:
            column -= diagonal * (2 * lambd / N)
        da, db = own_b * column, own_a * column
        if both.gram:
            da.addmm_(gram_b, a, alpha=2 * lambd / N**2)
            db.addmm_(gram_a, b, alpha=2 * lambd / N**2)
        else:
            da.addmm_(b, correlation.T, alpha=2 * lambd / N)
            db.addmm_(a, correlation, alpha=2 * lambd / N)
        along_a = torch.mul(own_a, da, out=own_scratch).sum(0)
        along_b = torch.mul(own_b, db, out=own_scratch).sum(0)
        along_a, along_b = both.over_ranks(along_a, along_b)
        da.addcmul_(own_a, along_a, value=-1 / N).mul_(inv_a)
        db.addcmul_(own_b, along_b, value=-1 / N).mul_(inv_b)
        return value, da, db


def _normalized(both: TwoViews, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Each view's columns at mean 0 and variance 1 [M, D], what they were multiplied by [D], and room for products
    [M, D]: fresh memory costs more than the products do.
    """
    first, second = both.centred()
    scratch = first.square()
    squares = both.over_rows(scratch.sum(0), torch.mul(second, second, out=scratch).sum(0))
    inv_a, inv_b = ((square / max(both.num_rows, 1) + eps).rsqrt_() for square in squares)
    return first.mul_(inv_a), second.mul_(inv_b), inv_a, inv_b, scratch
