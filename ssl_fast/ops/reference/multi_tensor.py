"""Whole-model updates in plain torch; `ssl_fast.ops.multi_tensor` has the equations."""

from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor


class LarsSettings(NamedTuple):
    """The numbers of one LARS step; `ssl_fast.ops.multi_tensor.lars_step_` explains them."""

    lr: float | Tensor  # []
    momentum: float
    weight_decay: float
    trust_coefficient: float
    eps: float
    nesterov: bool
    clip: bool


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def ema_update_(
    targets: Sequence[Tensor],  # each of any shape, updated in place
    sources: Sequence[Tensor],  # the same shapes
    momentum: float,
) -> None:
    """t <- m t + (1 - m) s, in fp32 (fp64 where either tensor is) and rounded once."""
    alike: tuple[list[Tensor], list[Tensor]] = ([], [])
    for target, source in zip(targets, sources, strict=True):
        wide = torch.promote_types(torch.promote_types(target.dtype, source.dtype), torch.float32)
        if target.dtype == source.dtype == wide:
            alike[0].append(target)
            alike[1].append(source)
        elif target.dtype == wide:
            target.lerp_(source.to(wide), 1 - momentum)
        else:
            target.copy_(target.to(wide).lerp(source.to(wide), 1 - momentum))
    if alike[0]:
        torch._foreach_lerp_(*alike, 1 - momentum)


def lookahead_update_(
    fast: Sequence[Tensor],  # each of any shape, updated in place
    slow: Sequence[Tensor],  # the same shapes and dtypes, updated in place
    alpha: float,
) -> None:
    """s <- s + alpha (f - s), f <- s."""
    ema_update_(slow, fast, 1 - alpha)
    torch._foreach_copy_(list(fast), list(slow))


def lars_step_(
    params: Sequence[Tensor],  # each of any shape, updated in place
    grads: Sequence[Tensor],  # the same shapes
    buffers: Sequence[Tensor],  # the same shapes, fp32 (fp64 for fp64 parameters), updated in place
    adapt: Sequence[bool],
    settings: LarsSettings,
) -> None:
    """One LARS step in the buffers' dtype, the parameters rounded once."""
    params, buffers = list(params), list(buffers)
    updates = [g.to(v.dtype, copy=True) for g, v in zip(grads, buffers, strict=True)]  # r (g + beta p) at the end
    if any(adapt):
        wide = [p.to(v.dtype) for p, v in compress(zip(params, buffers, strict=True), adapt)]
        _adapt_(list(compress(updates, adapt)), wide, settings)
    torch._foreach_mul_(buffers, settings.momentum)
    torch._foreach_add_(buffers, updates)
    if settings.nesterov:
        torch._foreach_add_(updates, buffers, alpha=settings.momentum)
    lr, directions = settings.lr, updates if settings.nesterov else buffers
    if isinstance(lr, Tensor):  # alpha must be a number
        lr, directions = 1.0, list(torch._foreach_mul(directions, lr))
    torch._foreach_add_(params, directions, alpha=-lr)


def _adapt_(
    updates: list[Tensor],  # gradients g, turned into r (g + beta p)
    params: list[Tensor],
    settings: LarsSettings,
) -> None:
    p_norm, g_norm = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))  # [L]
    ratio = settings.trust_coefficient * p_norm / (g_norm + settings.weight_decay * p_norm + settings.eps)
    if settings.clip:
        ratio = (ratio / settings.lr).clamp(max=1.0)
    ratio = ratio.where((p_norm > 0) & (g_norm > 0), 1.0)
    torch._foreach_add_(updates, params, alpha=settings.weight_decay)
    torch._foreach_mul_(updates, list(ratio.unbind()))
