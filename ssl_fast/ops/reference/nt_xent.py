"""NT-Xent in plain torch, with the interface and the numerics of the fused kernels, a block of rows at a time.

The positive is left out of the sum, loss = softplus(log l_neg - s_pos), and everything is computed in at least fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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
) -> tuple[Tensor, Tensor]:
    """Loss [R] and log of the whole normaliser [R] of the rows begin..end."""
    with torch.autocast(x.device.type, enabled=False):
        z, _ = _unit(x, normalize)
        parts = [_loss_block(z, positive, i.to(x.device), inv_temperature) for i in _blocks(rows, len(x))]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _loss_block(z: Tensor, positive: Tensor, i: Tensor, inv_temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    s = z[i] @ z.T * inv_temperature  # [I, N]
    p = positive[i, None]  # [I, 1]
    s_positive = s.gather(1, p).squeeze(1)
    log_negative = s.scatter(1, i[:, None], -torch.inf).scatter_(1, p, -torch.inf).logsumexp(1)
    # threshold: torch's default of 20 would drop log1p(e^-x) where fp64 still sees it.
    return F.softplus(log_negative - s_positive, threshold=60), torch.logaddexp(log_negative, s_positive)


def backward(
    x: Tensor,  # [N, D]
    positive: Tensor,  # [N] int64
    coef: Tensor,  # [N]
    log_l: Tensor,  # [N]
    rows: tuple[int, int],
    inv_temperature: float | Tensor,  # []
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """d(sum_i coef_i loss_i)/dx of the rows begin..end [R, D], and <z, dz> [R]."""
    with torch.autocast(x.device.type, enabled=False):
        z, norm = _unit(x, normalize)
        state = (z, positive, coef, log_l)
        dz = torch.cat([_gradient_block(*state, i.to(x.device), inv_temperature) for i in _blocks(rows, len(x))])
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
) -> Tensor:
    """dz of the rows `i` [I, D]: what they do as anchors, and what they do as columns of all others."""
    p = positive[i]  # an involution: also the row whose positive i is
    s = (z[i] @ z.T * inv_temperature).scatter_(1, i[:, None], -torch.inf).scatter_(1, p[:, None], -torch.inf)
    as_anchor, as_column = (s - log_l[i, None]).exp_(), (s - log_l).exp_()
    # p_positive - 1 is minus the sum of the others: once views align, p_positive rounds to 1 and would lose it.
    partner = _loss_block(z, positive, p, inv_temperature)[0]
    pair = coef[p] * torch.expm1(-partner) - coef[i] * as_anchor.sum(1)
    as_anchor.mul_(coef[i, None]).addcmul_(as_column, coef.expand_as(s)).scatter_(1, p[:, None], pair[:, None])
    return as_anchor @ z * inv_temperature
