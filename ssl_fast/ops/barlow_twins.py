r"""Barlow Twins: the columns of two views correlate with themselves and with no other.

    loss = sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2
    C_ij = (1/N) sum_n a_ni b_nj,    a_ni = (z_ni - mean_i) / sqrt(var_i + eps),    b from z' alike
with the mean and the biased variance of each column: a batch normalisation without parameters.

With fewer samples than dimensions the D x D matrix is never made: ||a^T b||^2 = <a a^T, b b^T>, of N x N Gram matrices.

Letters: N samples (of all ranks), D embedding.

Reference: Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", arXiv:2103.03230,
Eq. 1-2; eps as in the authors' code.
"""

from typing import Any

from torch import Tensor

from ssl_fast.distributed import Group, gradient_factor, group_by_name
from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.objective import Objective


def barlow_twins_reference(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    *,
    lambd: float = 0.0051,
    eps: float = 1e-5,
) -> Tensor:
    """The equations in plain torch, in the dtype of the views: oracle, baseline and second derivatives."""
    if len(z1) == 0:
        return (z1 + z2).sum()
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + eps).sqrt() for z in (z1, z2))
    correlation = a.T @ b / len(a)  # [D, D]
    diagonal = correlation.diagonal()
    return (1 - diagonal).square().sum() + lambd * (correlation - diagonal.diag()).square().sum()


def _barlow_twins(
    z1: Tensor,  # [n, D] this rank's rows
    z2: Tensor,  # [n, D]
    lambd: float,
    eps: float,
    group: str,
    factor: int,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss over all ranks [] and, when wanted, dz1 and dz2 [n, D]."""
    kernel = choose("barlow_twins", impl, z1, z2)
    if not group and hasattr(kernel, "objective") and 0 < z1.shape[0] < z1.shape[1]:
        found: tuple[Tensor, Tensor | None, Tensor | None]
        found = kernel.objective(z1, z2, lambd, eps, with_grad)
        return found
    value, dz1, dz2 = kernel.forward(z1, z2, lambd, eps, group_by_name(group) if group else None, with_grad)
    if with_grad and factor != 1:
        dz1.mul_(factor), dz2.mul_(factor)
    return value, dz1, dz2


def _equation(z1: Tensor, z2: Tensor, lambd: float, eps: float, *rest: Any) -> Tensor:
    """The reference with fp32 accumulation."""
    return barlow_twins_reference(contract.widened(z1), contract.widened(z2), lambd=lambd, eps=eps)


_OBJECTIVE = Objective(
    "barlow_twins",
    "Tensor z1, Tensor z2",
    "float lambd, float eps, str group, int factor, str impl",
    _barlow_twins,
    _equation,
    num_gradients=2,
)


def barlow_twins(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    *,
    lambd: float = 0.0051,
    eps: float = 1e-5,
    group: Group = None,
    grad_reduce: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """Barlow Twins' loss, by N x N Gram matrices where N < D and by the D x D correlation otherwise; memory O(N D).

    Computed with fp32 accumulation (fp64 for fp64), under autocast too; gradients, which go through the normalisation,
    come in the dtype of their input. A column that does not vary is normalised to 0. N = 0 gives 0 and empty gradients.

    Args:
        z1: embeddings of the first view, [N, D], not normalised.
        z2: embeddings of the second view, [N, D].
        lambd: coefficient of the off-diagonal squares.
        eps: added to the variances, positive.
        group: process group over whose rows the statistics run, local batches may differ in size. Every rank returns
            the global value; gradients are exact, for one more sum of 2 D numbers. None: this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the
            number of ranks. "sum" when they are added.
        impl: "auto", "cpp" or "reference".

    Returns:
        0-dim tensor, at least fp32.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, or a second derivative or a transform of torch.func with `group`.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])  # uncorrelated columns
        >>> round(barlow_twins(z, -z).item(), 3)  # C = -1: each column adds (1 + 1)^2
        8.0

    Reference: Zbontar et al. 2021, arXiv:2103.03230, Eq. 1.
    """
    contract.check_pair(("z1", "z2"), z1, z2)
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    check_impl("barlow_twins", impl)
    factor = gradient_factor(group, grad_reduce)
    z1, z2 = contract.of_one_dtype(z1, z2)
    name = "" if group is None else group.group_name
    return _OBJECTIVE((z1, z2), (lambd, eps, name, factor, impl))


class BarlowTwinsLoss(LossModule):
    """`barlow_twins` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        lambd: float = 0.0051,
        eps: float = 1e-5,
        group: Group = None,
        grad_reduce: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__(lambd=lambd, eps=eps, group=group, grad_reduce=grad_reduce, impl=impl)

    def forward(
        self,
        z1: Tensor,  # [N, D]
        z2: Tensor,  # [N, D]
    ) -> Tensor:
        """`barlow_twins(z1, z2)` with the module's settings."""
        return barlow_twins(z1, z2, **self.settings)
