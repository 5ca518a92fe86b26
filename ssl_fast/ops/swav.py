r"""SwAV: the assignments of one view, balanced over the batch, are predicted from the other views.

    q_a = sinkhorn(z_a w^T, epsilon)   for each of the first A views, without gradient
    loss_n = mean over the pairs a != v of views of  - sum_k q_ak log softmax_k(z_v w^T / T)

Letters: V views, A views that give assignments, N samples, D embedding, K prototypes.

Reference: Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
arXiv:2006.09882, Eq. 1, 2 and 6.
"""

import torch
from torch import Tensor

from ssl_fast.distributed import Group
from ssl_fast.ops import contract
from ssl_fast.ops.dino import teacher_bias, unit_prototypes
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.prototypes import Pairs, compare
from ssl_fast.ops.sinkhorn import sinkhorn_reference


def swav_reference(
    views: Tensor,  # [V, N, D], or logits [V, N, K]
    prototypes: Tensor | None = None,  # [K, D]
    *,
    num_assign: int = 2,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> Tensor:
    """The equation in plain torch, in the dtype of the views: oracle and baseline."""
    logits = views if prototypes is None else views @ prototypes.T  # [V, N, K]
    logs = (logits / temperature).log_softmax(-1)
    loss = logits.new_zeros(())
    for a in range(num_assign):
        q = sinkhorn_reference(logits[a].detach(), temperature=epsilon, iterations=iterations)
        others = torch.cat((logs[:a], logs[a + 1 :]))
        loss = loss - (q * others).sum((0, -1)).mean()
    return loss / (num_assign * (len(views) - 1))


def swav_loss(
    views: Tensor,  # [V, N, D], or logits [V, N, K]
    prototypes: Tensor | None = None,  # [K, D]
    *,
    num_assign: int = 2,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    normalize_prototypes: bool = False,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """SwAV's swapped prediction: the first views' assignments against all other views.

    Logits or rows and prototypes, dtypes, memory and gradients are as in `dino_loss`. Frozen prototypes are the
    caller's: pass `prototypes.detach()`.

    Args:
        views: crops, those that give assignments first, [V, N, D] with rows at unit length (or logits [V, N, K]).
        prototypes: [K, D]; None: `views` holds logits.
        num_assign: number of views whose assignments are predicted, A <= V.
        temperature: of the predictions, positive.
        epsilon: temperature of the assignments, positive; see `sinkhorn`.
        iterations: of Sinkhorn-Knopp, at least 1.
        normalize_prototypes: scale the prototypes to unit length first.
        weight: weights >= 0 of the samples, [N], constants; "mean" is then the weighted mean.
        group: process group over which assignments are balanced and "mean" and "sum" run; batches may differ in size.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP), "sum" when they are added.
        reduction: "mean" or "sum" over the samples (of all ranks), or "none": [N], times the weights.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here.

    Example:
        >>> round(swav_loss(torch.zeros(3, 5, 8)).item(), 4)  # log 8: all assignments are even
        2.0794

    Reference: Caron et al. 2020, arXiv:2006.09882, Eq. 2 and 6.
    """
    pairs = Pairs(temperature, epsilon, True, group, grad_reduce, reduction, impl)
    if not 1 <= num_assign <= len(views):
        raise ValueError(f"num_assign must be between 1 and the number of views, {len(views)}, got {num_assign}")
    fixed = views.detach()[:num_assign]
    pairs.check(views, fixed, prototypes, prototypes)
    contract.check_weight(weight, views, 1)
    prototypes, weight_teacher = unit_prototypes(prototypes, prototypes, normalize_prototypes)
    biases = [teacher_bias(view, weight_teacher, "sinkhorn", epsilon, iterations, group, impl) for view in fixed]
    bias = torch.stack([bias for bias in biases if bias is not None])
    return compare(views, prototypes, fixed, weight_teacher, bias, weight, pairs)


class SwAVLoss(LossModule):
    """`swav_loss` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        num_assign: int = 2,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        normalize_prototypes: bool = False,
        group: Group = None,
        grad_reduce: str = "mean",
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__(
            num_assign=num_assign,
            temperature=temperature,
            epsilon=epsilon,
            iterations=iterations,
            normalize_prototypes=normalize_prototypes,
            group=group,
            grad_reduce=grad_reduce,
            reduction=reduction,
            impl=impl,
        )

    def forward(
        self,
        views: Tensor,  # [V, N, D], or logits [V, N, K]
        prototypes: Tensor | None = None,  # [K, D]
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`swav_loss(views, prototypes, weight=weight)` with the module's settings."""
        return swav_loss(views, prototypes, weight=weight, **self.settings)
