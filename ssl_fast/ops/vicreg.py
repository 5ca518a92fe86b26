r"""VICReg: two views agree, every column keeps its spread, and columns do not vary together.

    loss = invariance s(Z, Z') + variance (v(Z) + v(Z')) + covariance (c(Z) + c(Z'))
    s(Z, Z') = mean_{n,d} (z_nd - z'_nd)^2
    v(Z) = mean_d max(0, gamma - sqrt(Var(z_d) + eps))
    c(Z) = (1/D) sum_{i != j} C(Z)_ij^2,    C(Z) = sum_n (z_n - mean)(z_n - mean)^T / (N - 1)

With fewer samples than dimensions the D x D matrix is never made: ||Z^T Z|| = ||Z Z^T||, the N x N Gram matrix.

Letters: N samples (of all ranks), D embedding.

Reference: Bardes et al. 2022, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
arXiv:2105.04906, Eq. 1-6; s as in Algorithm 1, where Eq. 5 leaves out the 1/D.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ssl_fast.distributed import Group, gradient_factor, group_by_name
from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.objective import Objective


def vicreg_reference(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """The equations in plain torch, in the dtype of the views: oracle, baseline and second derivatives."""
    if len(z1) == 0:
        return (z1 + z2).sum()
    loss = invariance * F.mse_loss(z1, z2)
    for z in (z1, z2):
        x = z - z.mean(0)
        matrix = x.T @ x / max(len(x) - 1, 1)  # [D, D]
        diagonal = matrix.diagonal()
        loss = loss + variance * F.relu(gamma - (diagonal + eps).sqrt()).mean()
        loss = loss + covariance * (matrix - diagonal.diag()).square().sum() / z.shape[1]
    return loss


def _vicreg(
    z1: Tensor,  # [n, D] this rank's rows
    z2: Tensor,  # [n, D]
    invariance: float,
    variance: float,
    covariance: float,
    gamma: float,
    eps: float,
    group: str,
    factor: int,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss over all ranks [] and, when wanted, dz1 and dz2 [n, D]."""
    kernel = choose("vicreg", impl, z1, z2)
    if not group and hasattr(kernel, "objective") and 0 < z1.shape[0] < z1.shape[1]:
        found: tuple[Tensor, Tensor | None, Tensor | None]
        found = kernel.objective(z1, z2, invariance, variance, covariance, gamma, eps, with_grad)
        return found
    ranks = group_by_name(group) if group else None
    value, dz1, dz2 = kernel.forward(z1, z2, invariance, variance, covariance, gamma, eps, ranks, with_grad)
    if with_grad and factor != 1:
        dz1.mul_(factor), dz2.mul_(factor)
    return value, dz1, dz2


def _equation(z1: Tensor, z2: Tensor, *options: Any) -> Tensor:
    """The reference with fp32 accumulation."""
    names = ("invariance", "variance", "covariance", "gamma", "eps")
    return vicreg_reference(contract.widened(z1), contract.widened(z2), **dict(zip(names, options, strict=False)))


_OBJECTIVE = Objective(
    "vicreg",
    "Tensor z1, Tensor z2",
    "float invariance, float variance, float covariance, float gamma, float eps, str group, int factor, str impl",
    _vicreg,
    _equation,
    num_gradients=2,
)


def vicreg(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
    group: Group = None,
    grad_reduce: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """VICReg's loss, by the N x N Gram matrices where N < D and by the D x D covariances otherwise; memory O(N D).

    Computed with fp32 accumulation (fp64 for fp64), under autocast too; gradients come in the dtype of their input. The
    defaults are the paper's. The authors' code and lightly halve the variance term: `variance=12.5` there. N = 0 gives
    0 and empty gradients; with N = 1 nothing varies, and the variance term is at its largest.

    Args:
        z1: embeddings of the first view, [N, D], not normalised.
        z2: embeddings of the second view, [N, D].
        invariance: coefficient of the mean squared difference.
        variance: coefficient of the hinge on each view's standard deviations.
        covariance: coefficient of the off-diagonal squares.
        gamma: the standard deviation that columns should reach.
        eps: added to the variances, positive.
        group: process group over whose rows the statistics run, local batches may differ in size. Every rank returns
            the global value; gradients are exact without any communication of gradients. None: this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the
            number of ranks. "sum" when they are added.
        impl: "auto", "cpp" or "reference".

    Returns:
        0-dim tensor, at least fp32.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, or a second derivative or a transform of torch.func with `group`.

    Example:
        >>> z = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])  # column 0 has variance 18, column 1 none
        >>> round(vicreg(z, z, eps=1e-4).item(), 4)  # 2 views: 25 / 2 (1 - 0.01)
        24.75

    Reference: Bardes et al. 2022, arXiv:2105.04906, Eq. 6.
    """
    contract.check_pair(("z1", "z2"), z1, z2)
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    check_impl("vicreg", impl)
    factor = gradient_factor(group, grad_reduce)
    z1, z2 = contract.of_one_dtype(z1, z2)
    name = "" if group is None else group.group_name
    return _OBJECTIVE((z1, z2), (invariance, variance, covariance, gamma, eps, name, factor, impl))


class VICRegLoss(LossModule):
    """`vicreg` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        gamma: float = 1.0,
        eps: float = 1e-4,
        group: Group = None,
        grad_reduce: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__(
            invariance=invariance,
            variance=variance,
            covariance=covariance,
            gamma=gamma,
            eps=eps,
            group=group,
            grad_reduce=grad_reduce,
            impl=impl,
        )

    def forward(
        self,
        z1: Tensor,  # [N, D]
        z2: Tensor,  # [N, D]
    ) -> Tensor:
        """`vicreg(z1, z2)` with the module's settings."""
        return vicreg(z1, z2, **self.settings)
