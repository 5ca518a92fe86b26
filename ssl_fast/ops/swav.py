r"""SwAV: the assignments of one view, balanced over the batch, are predicted from the other views.

    q_a = sinkhorn(z_a w^T, epsilon)   for each of the first A views (and earlier rows of it), without gradient
    loss_n = mean over the pairs a != v of views of  - sum_k q_ak log softmax_k(z_v w^T / T)

Letters: V views, A views that give assignments, N samples, D embedding, K prototypes, Q rows of the queue.

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
    queue: Tensor | None = None,  # [A, Q, D], or logits [A, Q, K]
) -> Tensor:
    """The equation in plain torch, in the dtype of the views: oracle and baseline."""
    logits = views if prototypes is None else views @ prototypes.T  # [V, N, K]
    earlier = queue if queue is None or prototypes is None else queue @ prototypes.T  # [A, Q, K]
    logs = (logits / temperature).log_softmax(-1)
    loss = logits.new_zeros(())
    for a in range(num_assign):
        balanced = logits[a] if earlier is None else torch.cat((logits[a], earlier[a]))
        q = sinkhorn_reference(balanced.detach(), temperature=epsilon, iterations=iterations)[: logits.shape[1]]
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
    queue: Tensor | None = None,  # [A, Q, D], or logits [A, Q, K]
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
        queue: rows of earlier steps, of each view that gives assignments, [A, Q, D] (or logits [A, Q, K]): constants
            that take part in the balancing and in nothing else. With a group, each rank gives its own part of them.
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
    _check_queue(queue, fixed)
    prototypes, weight_teacher = unit_prototypes(prototypes, prototypes, normalize_prototypes)
    balanced = fixed if queue is None else torch.cat((fixed, queue.detach().to(fixed.dtype)), 1)
    settings = ("sinkhorn", epsilon, iterations, group, impl)
    bias = torch.stack([teacher_bias(rows, weight_teacher, *settings) for rows in balanced])
    return compare(views, prototypes, fixed, weight_teacher, bias, weight, pairs)


def _check_queue(queue: Tensor | None, fixed: Tensor) -> None:
    """Raises ValueError unless `queue` is None or rows as wide as those of `fixed`, for each of its views."""
    if queue is None:
        return
    shape = [len(fixed), "Q", fixed.shape[2]]
    if queue.dim() != 3 or queue.shape[::2] != fixed.shape[::2] or not queue.is_floating_point():
        raise ValueError(
            f"queue must be floating point of shape [{', '.join(map(str, shape))}] (views that give assignments, rows, "
            f"width), got {queue.dtype} of shape {list(queue.shape)}"
        )


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
        queue: Tensor | None = None,  # [A, Q, D], or logits [A, Q, K]
    ) -> Tensor:
        """`swav_loss(views, prototypes, weight=weight, queue=queue)` with the module's settings."""
        return swav_loss(views, prototypes, weight=weight, queue=queue, **self.settings)
