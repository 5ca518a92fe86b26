r"""NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR, without the N x N matrix.

    loss_i = 1 / |P(i)| sum_{p in P(i)} -log( exp(s_ip) / sum_{j != i} exp(s_ij) )

    s_ij = <z_i, z_j> / temperature,    z_i = x_i / |x_i|

over the V N rows of all views; P(i) are the V - 1 other views of row i's sample, and the sum runs over all rows but i.
With two views this is SimCLR's Eq. 1; more views are joined as SupCon joins them, its Eq. 2 with every sample a class
of its own. The term of a single positive, with that positive left out of the sum, as
softplus(log sum_{j != i, p} exp(s_ij) - s_ip), keeps its digits when the views align.

Letters: N samples, V views, D embedding, x raw rows, z unit rows.

Reference: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", arXiv:2002.05709,
Eq. 1. Khosla et al. 2020, "Supervised Contrastive Learning", arXiv:2004.11362, Eq. 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.distributed import Group
from ssl_fast.ops import contract
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.self_contrast import self_contrast


def nt_xent_reference(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    reduction: str = "mean",
    views: tuple[Tensor, ...] = (),  # each [N, D]: the third view and those after it
) -> Tensor:
    """The equation in plain torch, in the dtype of the views: oracle, baseline and second derivatives."""
    z, num_views = torch.cat((z1, z2, *views)), 2 + len(views)
    z = F.normalize(z, dim=1, eps=1e-12) if normalize else z
    row = torch.arange(len(z), device=z.device)
    logits = (z @ z.T / temperature).masked_fill(row[:, None] == row, -torch.inf)  # [V N, V N]
    positive = torch.stack([logits[row, row.roll(shift * len(z1))] for shift in range(1, num_views)])
    loss = (logits.logsumexp(1) - positive.mean(0)).view(num_views, len(z1))
    loss = loss if weight is None else loss * weight
    if reduction != "mean":
        return loss if reduction == "none" else loss.sum()
    total = loss.numel() if weight is None else weight.sum() * num_views
    return loss.sum() / (total + (total == 0))


def equation_of_rows(
    x: Tensor,  # [V N, D]
    labels: None,
    temperature: float | Tensor,
    normalize: bool,
    num_views: int,
    ignore_index: int,
    weight: Tensor | None,  # [N]
    reduction: str,
) -> Tensor:
    """The reference on the rows of `self_contrast`."""
    z1, z2, *views = x.view(num_views, len(x) // num_views, x.shape[1])
    return nt_xent_reference(z1, z2, temperature, normalize, weight, reduction, tuple(views))


def nt_xent(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    *views: Tensor,  # each [N, D]
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """SimCLR's loss over the rows of two or more views, in memory O(V N D).

    Rows are compared in their own dtype with fp32 accumulation (fp64 for fp64), under autocast too; the loss is at
    least fp32 and gradients come in the dtype of their input. N = 0 gives 0 and empty gradients; N = 1 with
    two views has no negative and gives 0. A zero row has similarity 0 with all others and a finite gradient.

    Args:
        z1: embeddings of the first view, [N, D]; row i of all views belongs to sample i.
        z2: embeddings of the second view, [N, D].
        views: further views, each [N, D]. All rows but the anchor are in its denominator, and its loss is the mean
            over the other views of its sample.
        temperature: positive number, or a tensor of shape [] that may need a gradient.
        normalize: scale rows to unit length first (norms are clamped at 1e-12). False: rows are taken as they are.
        weight: weights >= 0 of the samples, [N]; "mean" is then the weighted mean. They may need a gradient.
        group: process group whose ranks' rows are all negatives, local batches may differ in size. Every rank returns
            the global value; gradients are exact without any communication of gradients. None: this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the
            number of ranks. "sum" when they are added.
        reduction: "mean" or "sum" over all rows (of all ranks), or "none": [V, N], the loss of each view of each local
            sample times its weight. Under "none" `grad_reduce` plays no part: `distributed.global_mean` applies it.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [V, N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, or a second derivative with `group`.

    Example:
        >>> z1, z2 = torch.eye(4), torch.eye(4)
        >>> round(nt_xent(z1, z2, temperature=1.0).item(), 4)  # log(e + 6) - 1
        1.1654

    Reference: Chen et al. 2020, arXiv:2002.05709, Eq. 1; more than two views: Khosla et al. 2020, arXiv:2004.11362,
    Eq. 2.
    """
    contract.check_pair(("z1", "z2"), z1, z2)
    for index, view in enumerate(views, 3):
        contract.check_rows(f"z{index}", view, z1, "z1")
    contract.check_weight(weight, z1)
    return self_contrast(
        "nt_xent",
        (z1, z2, *views),
        2 + len(views),
        temperature=temperature,
        normalize=normalize,
        weight=weight,
        group=group,
        grad_reduce=grad_reduce,
        reduction=reduction,
        impl=impl,
    )


class NTXentLoss(LossModule):
    """`nt_xent` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        temperature: float = 0.1,
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
        z1: Tensor,  # [N, D]
        z2: Tensor,  # [N, D]
        *views: Tensor,  # each [N, D]
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`nt_xent(z1, z2, weight=weight)` with the module's settings."""
        return nt_xent(z1, z2, *views, weight=weight, **self.settings)
