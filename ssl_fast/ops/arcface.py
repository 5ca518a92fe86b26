r"""ArcFace, CosFace and their combination: a fixed margin on the target, over many classes, without logits [N, C].

    loss_i = -log( exp(s phi(c_iy)) / (exp(s phi(c_iy)) + sum_{j != y} exp(s c_ij)) )

    arcface           phi = cos(theta + m)
    cosface           phi = cos(theta) - m
    combined_margin   phi = cos(m1 theta + m2) - m3

with c_ij = cos(theta_ij) the cosine of sample i and class j; a class of several centres counts by the nearest.

Letters: N samples, C classes, S centres of a class, D embedding.

References: Deng et al. 2019, "ArcFace", arXiv:1801.07698, Eq. 3-4; Wang et al. 2018, "CosFace", arXiv:1801.09414,
Eq. 4; Deng et al. 2020, "Sub-center ArcFace", ECCV, Eq. 3.
"""

from typing import Any

import torch
from torch import Tensor

from ssl_fast.distributed import Group
from ssl_fast.ops.margin_loss import is_exact, margin_loss
from ssl_fast.ops.margin_softmax import margin_softmax_reference
from ssl_fast.ops.margins import Margin


def arcface_reference(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    labels: Tensor,  # [N] int64
    *,
    margin: float = 0.5,
    margin_grad: str = "exact",
    monotone: bool = False,
    **options: Any,
) -> Tensor:
    """The equation in plain torch with logits [N, C]; `options` are those of `margin_softmax_reference`."""
    rule = Margin(m2=margin, monotone=monotone, exact=is_exact(margin_grad))
    return margin_softmax_reference(x, weight, labels, rule, **options)


def arcface(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    labels: Tensor,  # [N] int64
    *,
    margin: float = 0.5,
    margin_grad: str = "exact",
    monotone: bool = False,
    scale: float | Tensor = 64.0,
    ignore_index: int = -1,
    normalize: bool = True,
    sample_rate: float = 1.0,
    generator: torch.Generator | None = None,
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """Additive angular margin over many classes, in memory O(N D + C D).

    Cosines have fp32 accumulation (fp64 for fp64), under autocast too; the loss is at least fp32 and gradients come in
    the dtype of their input. N = 0 gives 0 and empty gradients.

    Args:
        x: embeddings, [N, D].
        weight: class centres, [C, D], or sub-centres [C, S, D], of which the nearest to a sample stands for its class.
            With `group`: the classes of this rank, in rank order.
        labels: classes of the samples, [N] int64, numbered over all ranks' classes.
        margin: radians, added to the angle with the sample's own class.
        margin_grad: "exact", or "straight_through": the target's logit has the value of the margin and the derivative
            of the cosine, as implementations train that write it under no_grad.
        monotone: where theta + margin > pi, the cosine would rise again: use cos(theta) - margin sin(margin) there.
        scale: s: a positive number, or a tensor of shape [] that may need a gradient.
        ignore_index: samples with this label have no loss and no gradient.
        normalize: scale x and weight to unit length (norms clamped at 1e-12). False: taken as unit rows.
        sample_rate: part of the classes that are compared: those of the batch, and random others.
        generator: draws those, on the device of x; None: torch's own.
        group: process group whose ranks each hold some of the classes and some of the samples, in any numbers. The
            value is that over all samples and classes, on every rank. None: this process alone.
        grad_reduce: "mean" when gradients of x and scale are averaged over the ranks afterwards (DDP): they are
            multiplied by the number of ranks. "sum" when they are added. The gradient of weight is whole either way:
            each class is on one rank, so leave the weight out of DDP.
        reduction: "mean" or "sum" over the samples (of all ranks) that are not ignored, or "none": [N]. Under "none"
            `distributed.global_mean` applies `grad_reduce` to x, and the same word here keeps weight's gradient whole.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, a second derivative or a torch.func transform with `group` or
            `sample_rate`, or both of these under torch.compile.

    Example:
        >>> import torch
        >>> x = torch.eye(2)
        >>> round(arcface(x, x, torch.tensor([0, 1]), scale=1.0, margin=0.0).item(), 4)  # log(e + 1) - 1
        0.3133

    Reference: Deng et al. 2019, arXiv:1801.07698, Eq. 3.
    """
    return margin_loss(
        x,
        weight,
        labels,
        Margin(m2=margin, monotone=monotone, exact=is_exact(margin_grad)),
        scale=scale,
        ignore_index=ignore_index,
        normalize=normalize,
        sample_rate=sample_rate,
        generator=generator,
        group=group,
        grad_reduce=grad_reduce,
        reduction=reduction,
        impl=impl,
    )


def cosface(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    labels: Tensor,  # [N] int64
    *,
    margin: float = 0.35,
    **options: Any,
) -> Tensor:
    """Additive cosine margin over many classes.

    Args:
        x: embeddings, [N, D].
        weight: class centres, [C, D] or [C, S, D].
        labels: classes of the samples, [N] int64.
        margin: taken from the cosine with the sample's own class.
        options: as `arcface` has them, from `scale` on.

    Returns:
        0-dim tensor, or [N].

    Raises:
        ValueError, RuntimeError: as `arcface` does.

    Example:
        >>> import torch
        >>> x = torch.eye(2)
        >>> round(cosface(x, x, torch.tensor([0, 1]), scale=1.0, margin=1.0).item(), 4)  # log 2
        0.6931

    Reference: Wang et al. 2018, arXiv:1801.09414, Eq. 4.
    """
    return margin_loss(x, weight, labels, Margin(m3=margin), **options)


def combined_margin(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    labels: Tensor,  # [N] int64
    *,
    m1: float = 1.0,
    m2: float = 0.3,
    m3: float = 0.2,
    margin_grad: str = "exact",
    **options: Any,
) -> Tensor:
    """The margins of SphereFace, ArcFace and CosFace in one: cos(m1 theta + m2) - m3.

    Args:
        x: embeddings, [N, D].
        weight: class centres, [C, D] or [C, S, D].
        labels: classes of the samples, [N] int64.
        m1: factor of the angle with the sample's own class.
        m2: radians, added to it.
        m3: taken from its cosine.
        margin_grad: as `arcface` has it.
        options: as `arcface` has them, from `scale` on.

    Returns:
        0-dim tensor, or [N].

    Raises:
        ValueError, RuntimeError: as `arcface` does.

    Example:
        >>> import torch
        >>> x, labels = torch.eye(3), torch.arange(3)
        >>> one, other = combined_margin(x, x, labels, m2=0.5, m3=0.0), arcface(x, x, labels, margin=0.5)
        >>> bool(one == other)
        True

    Reference: Deng et al. 2019, arXiv:1801.07698, Eq. 4.
    """
    return margin_loss(x, weight, labels, Margin(m1, m2, m3, exact=is_exact(margin_grad)), **options)
