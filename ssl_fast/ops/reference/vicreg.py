"""VICReg in plain torch with the gradient in closed form, on the Gram or on the covariance side.

x are the centred rows, C = x^T x / (N - 1), and s_d the squares of column d summed. With ||x^T x|| = ||x x^T||,

    sum_{i != j} C_ij^2 = (||x x^T||^2 - sum_d s_d^2) / (N - 1)^2,    its gradient 4 (x x^T x - x s) / (N - 1)^2,

and every part of the gradient but that of the invariance sums to zero down the columns, so that centring passes it on
as it is.
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
    invariance: float,
    variance: float,
    covariance: float,
    gamma: float,
    eps: float,
    group: Group,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss over all ranks [] and, when wanted, its gradients dz1, dz2 [n, D]; at least fp32.

    Collectives: the ranks' sizes; N < D: one gather of both views' rows and one sum of 3 numbers. Otherwise one sum of
    2 D numbers and one of 2 D^2 + 1.
    """
    with torch.autocast(z1.device.type, enabled=False):
        both = TwoViews(z1, z2, group)
        x1, x2 = both.centred()
        difference = both.views[0][both.mine] - both.views[1][both.mine]
        free, D = max(both.num_rows - 1, 1), max(z1.shape[1], 1)
        per_element, quartic = invariance / max(both.num_rows * D, 1), covariance / (D * free * free)
        products, squares, sums = _second_moments(both, x1, x2, difference)
        std = (squares / free + eps).sqrt_()  # [2, D]
        short = (gamma - std).relu_()
        value = per_element * sums[2] + quartic * (sums[0] + sums[1]) + short.double().sum() * (variance / D)
        value = value.to(std.dtype) if both.num_rows else difference.sum()
        if not with_grad:
            return value, None, None
        column = torch.where(short > 0, -variance / (D * free) / std, 0)
        if both.gram:
            column -= squares * (4 * quartic)
        # Large tensors: each is written over as soon as it has served, for fresh memory costs more than the sums do.
        apart = difference.mul_(2 * per_element)
        dz1 = torch.addcmul(apart, x1[both.mine], column[0])
        dz2 = apart.addcmul_(x2[both.mine], column[1], value=-1)
        for dz, x, product, sign in ((dz1, x1, products[0], 1), (dz2, x2, products[1], -1)):
            left, right = (product, x) if both.gram else (x, product)
            dz.addmm_(left, right, beta=sign, alpha=4 * quartic)
        return value, dz1, dz2


def _second_moments(
    both: TwoViews,
    x1: Tensor,  # [M, D] centred
    x2: Tensor,  # [M, D] centred
    difference: Tensor,  # [n, D]
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Per view: x x^T of this rank's rows [n, N], or x^T x without its diagonal [D, D]; squares of columns [2, D]; and,
    in fp64, sums over all ranks [3]: off-diagonal squares of x^T x for each view, squares of the difference.
    """
    apart = squared_norm(torch.linalg.vector_norm(difference, dim=1))
    if both.gram:
        scratch = x1.square()
        squares = torch.stack((scratch.sum(0), torch.mul(x2, x2, out=scratch).sum(0)))
        grams = (x1[both.mine] @ x1.T, x2[both.mine] @ x2.T)
        (sums,) = both.over_ranks(torch.stack((squared_norm(grams[0]), squared_norm(grams[1]), apart)))
        sums[:2] -= squares.double().square().sum(1)
        return grams, squares, sums
    first, second, apart = both.over_ranks(x1.T @ x1, x2.T @ x2, apart.to(x1.dtype))
    squares = torch.stack((first.diagonal(), second.diagonal()))
    norms = [squared_norm(matrix.fill_diagonal_(0)) for matrix in (first, second)]
    return (first, second), squares, torch.stack((*norms, apart.double()))
