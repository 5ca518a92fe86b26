r"""CurricularFace: an angular margin on the target, and hard negatives that weigh more as training goes on.

    phi_i = cos(theta_i + m),   f(c_ij) = c_ij (t + c_ij) where c_ij > cos(theta_i + m), else c_ij

with t the moving average of the targets' cosines. Where theta + m > pi, phi = cos(theta) - m sin(m).

Letters: N samples, C classes, S centres of a class, D embedding; M samples of all ranks.

Reference: Huang et al. 2020, "CurricularFace", arXiv:2004.00288, Eq. 5-7.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_fast.distributed import Group, all_gather_rows
from ssl_fast.ops.margin_loss import margin_loss, targets
from ssl_fast.ops.margin_softmax import IGNORED, margin_softmax_reference, target_cosine
from ssl_fast.ops.margins import Margin


def curricularface_reference(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    labels: Tensor,  # [N] int64
    *,
    hardness: Tensor,  # []
    margin: float = 0.5,
    **options: Any,
) -> Tensor:
    """The equation in plain torch with logits [N, C]; `options` are those of `margin_softmax_reference`."""
    rule = Margin(m2=margin, monotone=True)
    return margin_softmax_reference(x, weight, labels, rule, hardness=hardness, **options)


@torch.no_grad()
def mean_target_cosine(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    labels: Tensor,  # [N] int64
    ignore_index: int = -1,
    group: Group = None,
) -> Tensor:
    """Mean cosine of all ranks' samples with their own class, [] in at least fp32: what t is the average of.

    NaN where no sample has a class.
    """
    target = targets(labels, len(weight), ignore_index, group)
    cosine = target_cosine(all_gather_rows(x, group), weight if weight.dim() == 3 else weight[:, None], target)
    total = cosine.sum()
    if group is not None:
        dist.all_reduce(total, group=group)
    return total / (target != IGNORED).sum()


def curricularface(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    labels: Tensor,  # [N] int64
    *,
    hardness: Tensor,  # []
    margin: float = 0.5,
    **options: Any,
) -> Tensor:
    """An angular margin with negatives by curriculum. `MarginHead(loss="curricularface")` keeps the average t.

    Args:
        x: embeddings, [N, D].
        weight: class centres, [C, D] or [C, S, D].
        labels: classes of the samples, [N] int64.
        hardness: t in [0, 1], the moving average of the targets' cosines, []; it gets no gradient.
        margin: radians, added to the angle with the sample's own class.
        options: as `arcface` has them, from `scale` on.

    Returns:
        0-dim tensor, or [N].

    Raises:
        ValueError, RuntimeError: as `arcface` does.

    Example:
        >>> x, labels = torch.eye(3), torch.arange(3)
        >>> value = curricularface(x, x, labels, hardness=torch.tensor(0.5), margin=0.0, scale=1.0)
        >>> round(value.item(), 4)  # no negative is hard: log(e + 2) - 1
        0.5514

    Reference: Huang et al. 2020, arXiv:2004.00288, Eq. 5-7.
    """
    rule = Margin(m2=margin, monotone=True)
    return margin_loss(x, weight, labels, rule, hardness=hardness.detach(), **options)
