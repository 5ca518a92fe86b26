"""NT-Xent, SupCon and DCL in plain torch, with the interface and numerics of the fused kernels, by blocks of rows.

A single positive is left out of the sum, loss = softplus(log l_neg - s_pos), and everything is computed in at least
fp32. log_l is infinite for a row that has no loss: whatever it is multiplied by, its gradient is then zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.classes import Classes
from ssl_fast.ops.contract import widened

_BLOCK = 1 << 22  # elements of one block of logits


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def _unit(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """Rows at unit length [N, D] and their clamped norms [N, 1]."""
    x = widened(x)
    norm = x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return (x / norm, norm) if normalize else (x, norm)


def _blocks(rows: tuple[int, int], num_columns: int) -> list[Tensor]:
    index = torch.arange(rows[0], rows[1])
    return list(torch.split(index, max(1, _BLOCK // max(1, num_columns))))


def forward(
    x: Tensor,  # [N, D]
    positive: Tensor,  # [N] int64
    rows: tuple[int, int],
    inv_temperature: float | Tensor,  # []
    normalize: bool,
    classes: Classes | None = None,
    decoupled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss [R] and log of the whole normaliser [R] of the rows begin..end; of the negatives alone if `decoupled`."""
    with torch.autocast(x.device.type, enabled=False):
        z, _ = _unit(x, normalize)
        indices = [i.to(x.device) for i in _blocks(rows, len(x))]
        parts = [_loss_block(z, positive, i, inv_temperature, classes, decoupled) for i in indices]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _without(
    s: Tensor,  # [I, N]
    i: Tensor,  # [I]
    p: Tensor,  # [I, 1]
    classes: Classes | None,
) -> Tensor:
    """The logits of the rows `i` that stay in their sums; what does not is minus infinity."""
    s = s.scatter(1, i[:, None], -torch.inf).scatter_(1, p, -torch.inf)
    return s if classes is None else s.masked_fill_((classes.ids < 0)[None, :] | (classes.ids < 0)[i, None], -torch.inf)


def _loss_block(
    z: Tensor,  # [N, D]
    positive: Tensor,  # [N]
    i: Tensor,  # [I]
    inv_temperature: float | Tensor,
    classes: Classes | None,
    decoupled: bool,
) -> tuple[Tensor, Tensor]:
    s = z[i] @ z.T * inv_temperature  # [I, N]
    p = positive[i, None]  # [I, 1]
    s_positive = s.gather(1, p).squeeze(1)
    log_sum = _without(s, i, p, classes).logsumexp(1)
    if decoupled:
        alone = log_sum == -torch.inf
        return (log_sum - s_positive).masked_fill(alone, 0), log_sum.masked_fill(alone, torch.inf)
    # threshold: torch's default of 20 would drop log1p(e^-x) where fp64 still sees it.
    loss, log_l = F.softplus(log_sum - s_positive, threshold=60), torch.logaddexp(log_sum, s_positive)
    if classes is None:
        return loss, log_l
    count = classes.num_positives[i]
    mean = s.masked_fill(~_same(classes, i), 0).sum(1) / count
    loss = torch.where(count == 1, loss, torch.where(count == 0, 0, log_sum - mean))
    return loss, torch.where(count == 1, log_l, torch.where(count == 0, torch.inf, log_sum))


def _same(classes: Classes, i: Tensor) -> Tensor:
    """The positives of the rows `i`, [I, N]."""
    same = classes.ids[i, None] == classes.ids
    return same.scatter_(1, i[:, None], False).logical_and_((classes.ids >= 0)[i, None])


def backward(
    x: Tensor,  # [N, D]
    positive: Tensor,  # [N] int64
    coef: Tensor,  # [N]
    log_l: Tensor,  # [N]
    rows: tuple[int, int],
    inv_temperature: float | Tensor,  # []
    normalize: bool,
    classes: Classes | None = None,
    decoupled: bool = False,
) -> tuple[Tensor, Tensor]:
    """d(sum_i coef_i loss_i)/dx of the rows begin..end [R, D], and <z, dz> [R]."""
    with torch.autocast(x.device.type, enabled=False):
        z, norm = _unit(x, normalize)
        state = (z, positive, coef, log_l)
        indices = [i.to(x.device) for i in _blocks(rows, len(x))]
        dz = torch.cat([_gradient_block(*state, i, inv_temperature, classes, decoupled) for i in indices])
    mine, norm = z[rows[0] : rows[1]], norm[rows[0] : rows[1]]
    zdz = (mine * dz).sum(1)
    if not normalize:
        return dz, zdz
    # Below the clamp the norm is a constant: no projection.
    return (dz - mine * torch.where(norm > 1e-12, zdz[:, None], 0)) / norm, zdz


def _gradient_block(
    z: Tensor,  # [N, D]
    positive: Tensor,  # [N]
    coef: Tensor,  # [N]
    log_l: Tensor,  # [N]
    i: Tensor,  # [I]
    inv_temperature: float | Tensor,
    classes: Classes | None,
    decoupled: bool,
) -> Tensor:
    """dz of the rows `i` [I, D]: what they do as anchors, and what they do as columns of all others."""
    p = positive[i]  # an involution: also the row whose positive i is
    s = _without(z[i] @ z.T * inv_temperature, i, p[:, None], classes)
    as_anchor, as_column = (s - log_l[i, None]).exp_(), (s - log_l).exp_()
    if decoupled:
        # The positive is in no sum. Where there is no negative (log_l is infinite) there is no loss.
        pair = -torch.where(log_l == torch.inf, 0, coef)[torch.stack((i, p))].sum(0)
    else:
        # p_positive - 1 is minus the sum of the others: once views align, p_positive rounds to 1 and would lose it.
        partner = _loss_block(z, positive, p, inv_temperature, classes, False)[0]
        pair = coef[p] * torch.expm1(-partner) - coef[i] * as_anchor.sum(1)
    as_anchor.mul_(coef[i, None]).addcmul_(as_column, coef.expand_as(s))
    if classes is None:
        return as_anchor.scatter_(1, p[:, None], pair[:, None]) @ z * inv_temperature
    kept = torch.where(classes.num_positives[i] == 1, pair, 0)
    as_anchor.scatter_add_(1, p[:, None], kept[:, None])
    share = torch.where(classes.num_positives > 1, coef / classes.num_positives, 0)
    as_anchor.sub_(torch.where(_same(classes, i), share[i, None] + share, 0))
    return as_anchor @ z * inv_temperature
