"""LAMB in plain torch; `ssl_fast.ops.lamb` has the equations."""

from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_fast.ops.reference.multi_tensor import unavailable as unavailable


class LambSettings(NamedTuple):
    """The numbers of one LAMB step; `ssl_fast.ops.lamb.lamb_step_` explains them."""

    lr: float | Tensor  # []
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    bias_correction: bool
    clip: bool
    step: float | Tensor  # []


def lamb_step_(
    params: Sequence[Tensor],  # each of any shape, updated in place
    grads: Sequence[Tensor],  # the same shapes
    first: Sequence[Tensor],  # the same shapes, fp32 (fp64 for fp64 parameters), updated in place
    second: Sequence[Tensor],  # the same shapes and dtype as first, updated in place
    adapt: Sequence[bool],
    settings: LambSettings,
) -> None:
    """One LAMB step in the moments' dtype, the parameters rounded once."""
    m, v = list(first), list(second)
    wide, g = ([t.to(x.dtype) for t, x in zip(tensors, m, strict=True)] for tensors in (params, grads))
    torch._foreach_lerp_(m, g, 1 - settings.beta1)
    torch._foreach_mul_(v, settings.beta2)
    torch._foreach_addcmul_(v, g, g, value=1 - settings.beta2)
    corrections = [1 - beta**settings.step for beta in (settings.beta1, settings.beta2)]
    updates, roots = m, torch._foreach_sqrt(v)
    if settings.bias_correction:
        updates = list(torch._foreach_div(m, _like(corrections[0], m)))
        torch._foreach_div_(roots, _like(corrections[1] ** 0.5, m))
    torch._foreach_add_(roots, settings.eps)
    updates = list(torch._foreach_div(updates, roots))
    if any(adapt):
        _adapt_(list(compress(updates, adapt)), list(compress(wide, adapt)), settings)
    torch._foreach_copy_(list(params), torch._foreach_sub(wide, torch._foreach_mul(updates, _like(settings.lr, m))))


def _adapt_(
    updates: list[Tensor],  # turned into r u
    params: list[Tensor],
    settings: LambSettings,
) -> None:
    torch._foreach_add_(updates, params, alpha=settings.weight_decay)
    p_norm, u_norm = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))  # [L]
    ratio = p_norm / u_norm
    if settings.clip:
        ratio = ratio.clamp(max=1.0)
    ratio = ratio.where((p_norm != 0) & (u_norm != 0), 1.0)
    torch._foreach_mul_(updates, list(ratio.unbind()))


def _like(
    number: float | Tensor,  # []
    tensors: list[Tensor],
) -> float | Tensor:
    """A tensor in the dtype and on the device of the list, which foreach functions ask for; a number as it is."""
    return number.to(tensors[0].device, tensors[0].dtype) if isinstance(number, Tensor) and tensors else number
