r"""InfoNCE against a queue of negatives (MoCo): loss and gradients in one pass over the queue, no [N, K + 1] logits.

    loss_i = -log( exp(s_i) / (exp(s_i) + sum_j exp(s_ij)) ),   s_i = <q_i, k_i> / temperature
                                                                s_ij = <q_i, u_j> / temperature
with q, k at unit length and u the rows of the queue, which are unit vectors already. Without a queue (MoCo v3), u are
the keys of the other samples, of all ranks: CLIP's loss in one direction.

Letters: N samples, D embedding, K rows of the queue.

Reference: He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv:1911.05722, Eq. 1;
Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers", arXiv:2104.02057, Alg. 1.
"""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.distributed import Group, gradient_factor
from ssl_fast.ops import contract
from ssl_fast.ops.clip_loss import clip_loss_reference, contrast
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.objective import Objective
from ssl_fast.ops.two_towers import check_towers


def info_nce_reference(
    q: Tensor,  # [N, D]
    k: Tensor,  # [N, D]
    queue: Tensor | None = None,  # [K, D]
    *,
    temperature: float | Tensor = 0.07,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    reduction: str = "mean",
) -> Tensor:
    """The equation in plain torch, in the dtype of q: oracle and baseline. Differentiable any number of times."""
    if queue is None:
        loss = clip_loss_reference(q, k, 1 / temperature, normalize, weight, reduction, sides=1)
        return loss.squeeze(0)
    if normalize:
        q, k = F.normalize(q, dim=1, eps=1e-12), F.normalize(k, dim=1, eps=1e-12)
    positive = (q * k).sum(1, keepdim=True)  # [N, 1]
    logits = torch.cat((positive, q @ queue.detach().to(q.dtype).T), 1) / temperature  # [N, 1 + K]
    loss = logits.logsumexp(1) - logits[:, 0]
    return contract.reduced(loss, weight, None, "mean", reduction)


def _info_nce(
    q: Tensor,  # [N, D]
    k: Tensor,  # [N, D]
    temperature: Tensor | None,  # []
    queue: Tensor,  # [K, D]
    inv_temperature: float,
    normalize: bool,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Per row: loss [N], and when wanted dq [N, D], dk [N, D], dtemperature [N]."""
    kernel = choose("info_nce", impl, q, k, queue)
    inverse = contract.inverse_of(temperature, inv_temperature, q)
    q, k = q.detach().contiguous(), k.detach().contiguous()
    loss, dq, dk, dinv = kernel.forward(q, k, queue, inverse, normalize, with_grad)
    return loss, dq, dk, None if temperature is None or dinv is None else dinv * (inverse * inverse * -1)


def _info_nce_at_once(
    q: Tensor,  # [N, D]
    k: Tensor,  # [N, D]
    weight: Tensor | None,  # [N]
    temperature: Tensor | None,  # []
    queue: Tensor,  # [K, D]
    inv_temperature: float,
    normalize: bool,
    average: bool,
    kernel: ModuleType,
    with_grad: bool,
) -> tuple[Tensor | None, ...]:
    """Mean or sum [] and, when wanted, dq [N, D], dk [N, D], dweight [N], dtemperature []."""
    inverse = float(contract.inverse_of(temperature, inv_temperature, q))
    wanted = (with_grad, temperature is not None)
    found: tuple[Tensor | None, ...] = kernel.objective(q, k, weight, queue, inverse, normalize, average, *wanted)
    return found


def _equation(
    q: Tensor,
    k: Tensor,
    weight: Tensor | None,
    temperature: Tensor | None,
    queue: Tensor,
    inv_temperature: float,
    normalize: bool,
    average: bool | None,
    kernel: Any,
) -> Tensor:
    """The reference in at least fp32; per row, [N], where `average` is None."""
    return info_nce_reference(
        contract.widened(q),
        contract.widened(k),
        queue,
        temperature=1 / inv_temperature if temperature is None else temperature,
        normalize=normalize,
        weight=weight,
        reduction="none" if average is None else "mean" if average else "sum",
    )


def _equation_rows(
    q: Tensor, k: Tensor, temperature: Tensor | None, queue: Tensor, inv_temperature: float, normalize: bool, impl: str
) -> Tensor:
    return _equation(q, k, None, temperature, queue, inv_temperature, normalize, None, impl)


_ROWS = Objective(
    "info_nce",
    "Tensor q, Tensor k, Tensor? temperature, Tensor queue",
    "float inv_temperature, bool normalize, str impl",
    _info_nce,
    _equation_rows,
    num_gradients=3,
    per_row=True,
)
_AT_ONCE = Objective(
    "info_nce_at_once",
    "Tensor q, Tensor k, Tensor? weight, Tensor? temperature, Tensor queue",
    "float inv_temperature, bool normalize, bool average, kernel",
    _info_nce_at_once,
    _equation,
    num_gradients=4,
    registered=False,
)


def info_nce(
    q: Tensor,  # [N, D]
    k: Tensor,  # [N, D]
    queue: Tensor | None = None,  # [K, D]
    *,
    temperature: float | Tensor = 0.07,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """MoCo's loss: each query against its key and all rows of the queue, in memory O(N D).

    The queue is read, never written, and gets no gradient; call `MoCoQueue.enqueue_` after the backward pass. Rows are
    compared with fp32 accumulation (fp64 for fp64), under autocast too; the loss is at least fp32 and gradients come in
    the dtype of their input. N = 0 gives 0 and empty gradients.

    Args:
        q: queries, [N, D].
        k: keys, [N, D]; row i is the positive of query i. They get a gradient when they require one.
        queue: negatives, [K, D], unit rows, bf16 or the dtype of q; any K. None: the negatives of a query are the keys
            of all other samples of all ranks. MoCo v3 calls it twice, (q1, k2) and (q2, k1), with keys that need no
            gradient; its factor 2 temperature is the method's.
        temperature: positive number, or a tensor of shape [] that may need a gradient.
        normalize: scale q and k to unit length first (norms are clamped at 1e-12). False: rows are taken as they are.
        weight: weights >= 0 of the samples, [N]; "mean" is then the weighted mean. They may need a gradient.
        group: process group over which "mean" and "sum" run; local batches may differ in size. A queue is each rank's
            own copy of the same rows. None: this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the
            number of ranks. "sum" when they are added.
        reduction: "mean" or "sum" over the samples (of all ranks), or "none": [N], times the weights. Under "none"
            `grad_reduce` plays no part: `distributed.global_mean` applies it.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, or without a queue a second derivative with `group`.

    Example:
        >>> q, queue = torch.eye(2, 3), torch.eye(3)[2:]
        >>> round(info_nce(q, q, queue, temperature=1.0).item(), 4)  # log(e + 1) - 1
        0.3133
        >>> round(info_nce(q, q, temperature=1.0).item(), 4)  # the same, against the other sample's key
        0.3133

    Reference: He et al. 2020, arXiv:1911.05722, Eq. 1; Chen et al. 2021, arXiv:2104.02057, Alg. 1.
    """
    if queue is None:
        return _among_keys(q, k, temperature, normalize, weight, group, grad_reduce, reduction, impl)
    contract.check_pair(("q", "k"), q, k)
    contract.check_rows("queue", queue)
    if queue.shape[1] != q.shape[1] or queue.device != q.device:
        raise ValueError(
            f"queue must have rows of {q.shape[1]} numbers on {q.device} as q has, "
            f"got {queue.shape[1]} on {queue.device}"
        )
    contract.check_weight(weight, q)
    contract.check_reduction(reduction)
    check_impl("info_nce", impl)
    gradient_factor(group, grad_reduce)
    tensor, inverse = contract.split_temperature(temperature)
    queue = queue.detach()
    q, k = contract.of_one_dtype(q, k)
    if reduction != "none" and group is None and q.numel() and contract.plainly():
        kernel = choose("info_nce", impl, q, k, queue)
        if hasattr(kernel, "objective"):
            return _AT_ONCE((q, k, weight, tensor, queue), (inverse, normalize, reduction == "mean", kernel))
    loss = _ROWS((q, k, tensor, queue), (inverse, normalize, impl))
    return contract.reduced(loss, weight, group, grad_reduce, reduction)


def _among_keys(
    q: Tensor,  # [N, D]
    k: Tensor,  # [N, D]
    temperature: float | Tensor,
    *options: Any,
) -> Tensor:
    """Each query against the keys of all samples: CLIP's loss from the queries to the keys."""
    q, k = check_towers(q, k, "q", "k")
    tensor, inverse = contract.split_temperature(temperature)
    scale = None if tensor is None else contract.widened(tensor).reciprocal()
    return contrast(q, k, (scale, inverse), 1, *options).squeeze(0)


class InfoNCELoss(LossModule):
    """`info_nce` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        normalize: bool = True,
        group: Group = None,
        grad_reduce: str = "mean",
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__(
            temperature=temperature,
            normalize=normalize,
            group=group,
            grad_reduce=grad_reduce,
            reduction=reduction,
            impl=impl,
        )

    def forward(
        self,
        q: Tensor,  # [N, D]
        k: Tensor,  # [N, D]
        queue: Tensor | None = None,  # [K, D]
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`info_nce(q, k, queue, weight=weight)` with the module's settings."""
        return info_nce(q, k, queue, weight=weight, **self.settings)
