"""CLIP's loss in plain torch, with the interface and the numerics of the fused kernels, a block of rows at a time.

The positive is left out of the sums, loss = softplus(log l_neg - s_pos), and everything is computed in at least fp32.
Letters: M pairs of all ranks, R of them wanted, D embedding, S directions (1: image to text; 2: and back).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.reference.towers import blocks, through_norm, unit


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def forward(
    image: Tensor,  # [M, D]
    text: Tensor,  # [M, D]
    rows: tuple[int, int],
    scale: float | Tensor,  # []
    normalize: bool,
    sides: int,
) -> tuple[Tensor, Tensor]:
    """Loss [S, R] and log of the whole normaliser [S, R], float64, of the pairs begin..end in each direction."""
    with torch.autocast(image.device.type, enabled=False):
        u, v = unit(image, normalize)[0], unit(text, normalize)[0]
        found = []
        for a, b in ((u, v), (v, u))[:sides]:
            parts = [_loss_block(a, b, i, scale) for i in blocks(rows, len(b), a.device)]
            found.append((torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])))
    return torch.stack([loss for loss, _ in found]), torch.stack([log_l for _, log_l in found])


def _negatives(a: Tensor, b: Tensor, i: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the rows `i` of a against all of b [I, M], the positives' taken out, and theirs [I, 1]."""
    s = a[i] @ b.T * scale
    s_positive = s.gather(1, i[:, None])
    return s.scatter_(1, i[:, None], -torch.inf), s_positive


def _loss_block(a: Tensor, b: Tensor, i: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    s, s_positive = _negatives(a, b, i, scale)
    highest = s.amax(1, keepdim=True) if s.numel() else s_positive
    highest = highest.clamp_min(torch.finfo(s.dtype).min)
    log_negative = highest.squeeze(1).double() + (s - highest).exp_().sum(1).double().log_()
    positive = s_positive.squeeze(1).double()
    # threshold: torch's default of 20 would drop log1p(e^-x) where fp64 still sees it.
    loss = F.softplus(log_negative - positive, threshold=60)
    return loss.to(s.dtype), positive + loss


def backward(
    image: Tensor,  # [M, D]
    text: Tensor,  # [M, D]
    coef: Tensor,  # [S, M]
    log_l: Tensor,  # [S, M] float64
    rows: tuple[int, int],
    scale: float | Tensor,  # []
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """d(sum coef loss)/dimage [R, D], d/dtext [R, D] of the pairs begin..end, and their shares [R] of d/dscale."""
    mine, sides = slice(*rows), len(coef)
    with torch.autocast(image.device.type, enabled=False):
        (u, u_norm), (v, v_norm) = unit(image, normalize), unit(text, normalize)
        to_text, to_image = [(coef[side], log_l[side]) for side in range(sides)] + [None] * (2 - sides)
        du, u_missed = _sums(u, v, to_text, to_image, rows, scale)
        dv, v_missed = _sums(v, u, to_image, to_text, rows, scale)
        pull = (coef[0, mine] * u_missed + (coef[1, mine] * v_missed if sides == 2 else 0))[:, None]
        du, dv = du - pull * v[mine], dv - pull * u[mine]
        dscale = (u[mine] * du).sum(1)
        du, dv = du * scale, dv * scale
    if not normalize:
        return du, dv, dscale
    return through_norm(du, u[mine], u_norm[mine]), through_norm(dv, v[mine], v_norm[mine]), dscale


_Side = tuple[Tensor, Tensor] | None  # coef [M] and log_l [M] of one direction; None: it is not asked for


def _sums(
    a: Tensor,  # [M, D]
    b: Tensor,  # [M, D]
    as_anchor: _Side,
    as_column: _Side,
    rows: tuple[int, int],
    scale: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """The negatives' part of da / scale [R, D], and 1 - p_positive of the rows as anchors [R]."""
    sums, missed = [a.new_empty(0, a.shape[1])], [a.new_empty(0)]
    for i in blocks(rows, len(b), a.device):
        s, _ = _negatives(a, b, i, scale)
        weights, p_sum = torch.zeros_like(s), torch.zeros_like(i, dtype=s.dtype)
        if as_anchor is not None:
            coef, log_l = as_anchor
            p = _exp_below(s, log_l[i, None])
            # The sum of the others rather than 1 - p_positive: once the towers align, that would round to 0.
            p_sum = p.sum(1)
            weights += p.mul_(coef[i, None])
        if as_column is not None:
            coef, log_l = as_column
            weights += _exp_below(s, log_l).mul_(coef)
        sums.append(weights @ b)
        missed.append(p_sum)
    return torch.cat(sums), torch.cat(missed)


def _exp_below(s: Tensor, log_l: Tensor) -> Tensor:
    """exp(s - log_l): near 100, log_l rounded to fp32 would cost a hundred times its rounding."""
    rounded = log_l.to(s.dtype)
    return (s - rounded).sub_((log_l - rounded).to(s.dtype)).exp_()
