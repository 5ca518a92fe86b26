"""Margin softmax in plain torch, with the interface of the fused kernels and in their memory."""

import torch
from torch import Tensor

from ssl_fast.ops.class_panels import Classes, Negatives, Passes, row_weights


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def forward(
    x: Tensor,  # [M, D]
    weight: Tensor,  # [C, S, D]
    target: Tensor,  # [M] int64; a number outside [0, C) is no target
    negatives: Negatives,
    normalize: bool,
    phi: Tensor,  # [M] target logits over scale
    slope: Tensor,  # [M] their derivatives
    row_weight: Tensor | None,  # [M]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Log-normaliser of the negatives [M]; with row_weight also dx, dweight, mean [M] of the weighted sum of losses."""
    with torch.autocast(x.device.type, enabled=False):
        classes = Classes(x, weight, target, normalize)
        lse = classes.log_sums(negatives, PASSES)
        if row_weight is None:
            return lse, None, None, None
        coef, pull = row_weights(lse, phi, slope, negatives.scale, row_weight)
        return lse, *classes.gradients(negatives, PASSES, lse, coef, pull)


def backward(
    x: Tensor,  # [M, D]
    weight: Tensor,  # [C, S, D]
    target: Tensor,  # [M]
    negatives: Negatives,
    normalize: bool,
    lse: Tensor,  # [M]
    coef: Tensor,  # [M]
    pull: Tensor,  # [M]
) -> tuple[Tensor, Tensor, Tensor]:
    """dx [M, D], dweight [C, S, D], and per row coef sum_j p_j f_j [M], for normalisers that are known."""
    with torch.autocast(x.device.type, enabled=False):
        return Classes(x, weight, target, normalize).gradients(negatives, PASSES, lse, coef, pull)


def _value(cosine: Tensor, negatives: Negatives) -> tuple[Tensor, Tensor | None]:
    """f and f' of a panel [M, B]; f' = 1 is None."""
    if negatives.threshold is None:
        return cosine, None
    hard = cosine > negatives.threshold[:, None]
    f = torch.where(hard, cosine * (negatives.hardness + cosine), cosine)
    return f, torch.where(hard, negatives.hardness + 2 * cosine, 1)


def _add_sums(cosine: Tensor, negatives: Negatives, lse: Tensor) -> Tensor:
    f, _ = _value(cosine, negatives)
    return torch.logaddexp(lse, (f * negatives.scale).logsumexp(1))


def _weigh_(cosine: Tensor, negatives: Negatives, lse: Tensor, coef: Tensor) -> Tensor:
    f, derivative = _value(cosine, negatives)
    p = (f * negatives.scale - lse[:, None]).exp_().mul_(coef[:, None])
    mean = (p * f).sum(1)
    cosine.copy_(p if derivative is None else p * derivative)
    return mean


PASSES = Passes(_add_sums, _weigh_)
