r"""DCL, decoupled contrastive learning: NT-Xent whose denominator holds the negatives alone. No N x N matrix.

    loss_i = -w_i s_ip + log sum_{j != i, p} exp(s_ij),    s_ij = <z_i, z_j> / temperature,    z_i = x_i / |x_i|

over the 2 N rows of both views; p is the other view of row i's sample. Without its positive in the denominator a
well-placed pair no longer weakens the gradient of its negatives. w_i = 1, or with `sigma` the negative von Mises-Fisher
weight, which turns to the pairs that are still apart,

    w_i = 2 - exp(<z_i, z_p> / sigma) / mean_k exp(<z_k, z_p(k)> / sigma),

a constant to the gradient.

Letters: N samples, D embedding, x raw rows, z unit rows.

Reference: Yeh et al. 2022, "Decoupled Contrastive Learning", arXiv:2110.06848, L_DC and L_DCW of Section 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.distributed import Group, all_gather_rows, global_mean, global_sum
from ssl_fast.ops import contract
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.self_contrast import self_contrast


def dcl_reference(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    temperature: float | Tensor = 0.1,
    sigma: float | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    reduction: str = "mean",
) -> Tensor:
    """The equation in plain torch, in the dtype of the views: oracle, baseline and second derivatives."""
    z = torch.cat((z1, z2))
    z = F.normalize(z, dim=1, eps=1e-12) if normalize else z
    row = torch.arange(len(z), device=z.device)
    positive = row.roll(len(z1))
    cosine = z @ z.T  # [2N, 2N]
    excluded = (row[:, None] == row) | (positive[:, None] == row)
    negatives = (cosine / temperature).masked_fill(excluded, torch.finfo(z.dtype).min).logsumexp(1)
    pull = cosine[row, positive]
    pull = pull if sigma is None else pull * (2 - len(z) * (pull.detach() / sigma).softmax(0))
    loss = (negatives - pull / temperature if len(z1) > 1 else 0 * pull / temperature).view(2, len(z1))
    loss = loss if weight is None else loss * weight
    if reduction != "mean":
        return loss if reduction == "none" else loss.sum()
    total = loss.numel() if weight is None else weight.sum() * 2
    return loss.sum() / (total + (total == 0))


def equation_of_rows(
    x: Tensor,  # [2 N, D]
    labels: None,
    temperature: float | Tensor,
    normalize: bool,
    num_views: int,
    ignore_index: int,
    weight: Tensor | None,  # [N]
    reduction: str,
) -> Tensor:
    """The reference on the rows of `self_contrast`, all w_i = 1."""
    z1, z2 = x.view(2, len(x) // 2, x.shape[1])
    return dcl_reference(z1, z2, temperature, None, normalize, weight, reduction)


def dcl(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    *,
    temperature: float | Tensor = 0.1,
    sigma: float | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """The decoupled contrastive loss over the rows of both views, in memory O(N D).

    Rows are compared in their own dtype with fp32 accumulation (fp64 for fp64), under autocast too; the loss is at
    least fp32 and gradients come in the dtype of their input. The loss may be negative. N = 0 gives 0 and empty
    gradients; N = 1 has no negative and gives 0. A zero row has similarity 0 with all others and a finite gradient.

    Args:
        z1: embeddings of the first view, [N, D]; row i of both views belongs to sample i.
        z2: embeddings of the second view, [N, D].
        temperature: positive number, or a tensor of shape [] that may need a gradient.
        sigma: positive width of the von Mises-Fisher weights (0.5 in the paper), whose mean is that of all rows of all
            ranks; None: all positives weigh the same.
        normalize: scale rows to unit length first (norms are clamped at 1e-12). False: rows are taken as they are.
        weight: weights >= 0 of the samples, [N]; "mean" is then the weighted mean. They may need a gradient.
        group: process group whose ranks' rows are all negatives, local batches may differ in size. Every rank returns
            the global value; gradients are exact without any communication of gradients. None: this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the
            number of ranks. "sum" when they are added.
        reduction: "mean" or "sum" over all rows (of all ranks), or "none": [2, N], the loss of each view of each local
            sample times its weight. Under "none" `grad_reduce` plays no part: `distributed.global_mean` applies it.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [2, N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, or a second derivative with `group`.

    Example:
        >>> z1, z2 = torch.eye(4), torch.eye(4)
        >>> round(dcl(z1, z2, temperature=1.0).item(), 4)  # log 6 - 1
        0.7918

    Reference: Yeh et al. 2022, arXiv:2110.06848, L_DC and L_DCW of Section 3.
    """
    contract.check_pair(("z1", "z2"), z1, z2)
    contract.check_weight(weight, z1)
    if sigma is not None and not sigma > 0:
        raise ValueError(f"sigma must be positive or None, got {sigma}")
    loss = self_contrast(
        "dcl",
        (z1, z2),
        2,
        temperature=temperature,
        normalize=normalize,
        weight=weight,
        group=group,
        grad_reduce=grad_reduce,
        reduction=reduction,
        impl=impl,
    )
    if sigma is None:
        return loss
    more = _weighted_pull(z1, z2, sigma, normalize, group) / temperature
    if reduction == "mean":
        return loss + global_mean(more, weight, group, grad_reduce)
    more = more if weight is None else more * weight
    return loss + more if reduction == "none" else loss + 2 * global_sum(more, group, grad_reduce)


def _weighted_pull(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    sigma: float,
    normalize: bool,
    group: Group,
) -> Tensor:
    """(1 - w_i) <z_i, z_p>, [N]: what the weights add to the loss with w_i = 1, times the temperature."""
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = contract.widened(z1), contract.widened(z2)
        if normalize:
            z1, z2 = F.normalize(z1, dim=1, eps=1e-12), F.normalize(z2, dim=1, eps=1e-12)
        cosine = (z1 * z2).sum(1)
        scaled = cosine.detach() / sigma
        everyone = scaled if group is None else all_gather_rows(scaled, group)
        return ((scaled - everyone.logsumexp(0)).exp() * len(everyone) - 1) * cosine


class DCLLoss(LossModule):
    """`dcl` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        sigma: float | None = None,
        normalize: bool = True,
        group: Group = None,
        grad_reduce: str = "mean",
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__(
            temperature=temperature,
            sigma=sigma,
            normalize=normalize,
            group=group,
            grad_reduce=grad_reduce,
            reduction=reduction,
            impl=impl,
        )

    def forward(
        self,
        z1: Tensor,  # [N, D]
        z2: Tensor,  # [N, D]
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`dcl(z1, z2, weight=weight)` with the module's settings."""
        return dcl(z1, z2, weight=weight, **self.settings)
