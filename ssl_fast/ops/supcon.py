r"""SupCon, the supervised contrastive loss: all rows of an anchor's class are its positives. No N x N matrix.

    loss_i = -1 / |P(i)| sum_{p in P(i)} log( exp(s_ip) / sum_{j != i} exp(s_ij) )

    s_ij = <z_i, z_j> / temperature,    z_i = x_i / |x_i|

P(i) are the other rows with row i's label; this is L_out, whose mean stands outside the logarithm. The positives enter
the loss through the sums of z over each class alone, so only the denominator needs the pairs.

Letters: N samples, V views, D embedding, x raw rows, z unit rows.

Reference: Khosla et al. 2020, "Supervised Contrastive Learning", arXiv:2004.11362, Eq. 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.distributed import Group
from ssl_fast.ops import contract
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.self_contrast import self_contrast


def supcon_reference(
    z: Tensor,  # [N, D]
    labels: Tensor,  # [N] int64
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    ignore_index: int = -1,
    weight: Tensor | None = None,  # [N]
    reduction: str = "mean",
) -> Tensor:
    """The equation in plain torch, in the dtype of the rows: oracle, baseline and second derivatives."""
    z = F.normalize(z, dim=1, eps=1e-12) if normalize else z
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    left_out = labels == ignore_index
    positive = (labels[:, None] == labels) & ~itself & ~left_out[:, None]  # [N, N]
    count = positive.sum(1)
    # The lowest number, not minus infinity: a row without any other would give NaN.
    logits = (z @ z.T / temperature).masked_fill(itself | left_out, torch.finfo(z.dtype).min)  # [N, N]
    log_p = logits - logits.logsumexp(1, keepdim=True)
    loss = -log_p.masked_fill(~positive, 0).sum(1) / count.clamp_min(1)
    weight = (count > 0).to(z.dtype) if weight is None else weight * (count > 0)
    if reduction != "mean":
        return loss * weight if reduction == "none" else (loss * weight).sum()
    return (loss * weight).sum() / (weight.sum() + (weight.sum() == 0))


def equation_of_rows(
    x: Tensor,  # [N, D]
    labels: Tensor,  # [N] int64
    temperature: float | Tensor,
    normalize: bool,
    num_views: int,
    ignore_index: int,
    weight: Tensor | None,  # [N]
    reduction: str,
) -> Tensor:
    """The reference on the rows of `self_contrast`."""
    return supcon_reference(x, labels, temperature, normalize, ignore_index, weight, reduction)


def supcon(
    z: Tensor,  # [N, D] or [N, V, D]
    labels: Tensor,  # [N]
    *,
    temperature: float | Tensor = 0.1,
    base_temperature: float | None = None,
    normalize: bool = True,
    ignore_index: int = -1,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """The supervised contrastive loss over all rows, in memory O(V N D).

    Rows are compared in their own dtype with fp32 accumulation (fp64 for fp64), under autocast too; the loss is at
    least fp32 and gradients come in the dtype of their input. A row without positives has the loss 0, stays a negative
    of the others and does not count in the mean; without any positive the value is 0. A zero row has similarity 0 with
    all others and a finite gradient.

    Args:
        z: embeddings, one row each, [N, D]; or the V views of every sample, [N, V, D].
        labels: classes of the samples, [N] integers; all views of a sample are of its class.
        temperature: positive number, or a tensor of shape [] that may need a gradient.
        base_temperature: the loss is multiplied by temperature / base_temperature, as the authors' code does (0.07
            there); None leaves it as in the paper.
        normalize: scale rows to unit length first (norms are clamped at 1e-12). False: rows are taken as they are.
        ignore_index: samples of this label take no part: neither anchors nor positives nor negatives.
        weight: weights >= 0 of the samples, [N]; "mean" is then the weighted mean. They may need a gradient.
        group: process group whose ranks' rows are all compared, local batches may differ in size. Every rank returns
            the global value; gradients are exact without any communication of gradients. None: this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the
            number of ranks. "sum" when they are added.
        reduction: "mean" or "sum" over all rows (of all ranks) that have a positive, or "none": [N] or [N, V], the
            loss of each local row times its weight. Under "none" `grad_reduce` plays no part.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [N], or [N, V].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, or a second derivative with `group`.

    Example:
        >>> z, labels = torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 0, 1, 2])
        >>> round(supcon(z, labels, temperature=1.0).item(), 4)  # log(e + 4) - 1
        0.9048

    Reference: Khosla et al. 2020, arXiv:2004.11362, Eq. 2.
    """
    _check(z, labels, base_temperature)
    contract.check_weight(weight, z)
    num_views = z.shape[1] if z.dim() == 3 else 1
    labels = labels.long()
    # Widened before their second use, so that the parts of their gradients are added in fp32.
    if base_temperature is not None and isinstance(temperature, Tensor):
        temperature = contract.widened(temperature)
    if num_views > 1 and weight is not None:
        weight = contract.widened(weight).repeat_interleave(num_views)
    loss = self_contrast(
        "supcon",
        (z if z.dim() == 2 else z.flatten(0, -2),),
        1,
        labels if num_views == 1 else labels.repeat_interleave(num_views),
        ignore_index=ignore_index,
        temperature=temperature,
        normalize=normalize,
        weight=weight,
        group=group,
        grad_reduce=grad_reduce,
        reduction=reduction,
        impl=impl,
    )
    loss = loss.view(z.shape[:-1]) if reduction == "none" else loss
    return loss if base_temperature is None else loss * (temperature / base_temperature)


def _check(
    z: Tensor,  # [N, D] or [N, V, D]
    labels: Tensor,  # [N]
    base_temperature: float | None,
) -> None:
    if z.dim() not in (2, 3) or not z.is_floating_point():
        raise ValueError(
            f"z must be floating point of shape [N, D] or [N, V, D], got {z.dtype} of shape {list(z.shape)}"
        )
    whole = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    if labels.shape != z.shape[:1] or not whole or labels.device != z.device:
        raise ValueError(
            f"labels must be integers of shape [{len(z)}], one per sample, on {z.device}, "
            f"got {labels.dtype} of shape {list(labels.shape)} on {labels.device}"
        )
    if base_temperature is not None and not base_temperature > 0:
        raise ValueError(f"base_temperature must be positive, got {base_temperature}")


class SupConLoss(LossModule):
    """`supcon` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        base_temperature: float | None = None,
        normalize: bool = True,
        ignore_index: int = -1,
        group: Group = None,
        grad_reduce: str = "mean",
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__(
            temperature=temperature,
            base_temperature=base_temperature,
            normalize=normalize,
            ignore_index=ignore_index,
            group=group,
            grad_reduce=grad_reduce,
            reduction=reduction,
            impl=impl,
        )

    def forward(
        self,
        z: Tensor,  # [N, D] or [N, V, D]
        labels: Tensor,  # [N]
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`supcon(z, labels, weight=weight)` with the module's settings."""
        return supcon(z, labels, weight=weight, **self.settings)
