"""SAM's updates in plain torch; `ssl_fast.ops.sam` has the equations."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_fast.ops.reference.multi_tensor import unavailable as unavailable


class SgdSettings(NamedTuple):
    """The numbers of one step of SGD; `ssl_fast.ops.sam.sam_sgd_step_` explains them."""

    lr: float | Tensor  # []
    momentum: float
    weight_decay: float
    nesterov: bool


class AdamWSettings(NamedTuple):
    """The numbers of one step of AdamW; `ssl_fast.ops.sam.sam_adamw_step_` explains them."""

    lr: float | Tensor  # []
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: float


def ascend_(
    params: Sequence[Tensor],  # each of any shape, updated in place
    grads: Sequence[Tensor],  # the same shapes and dtype
    saved: Sequence[Tensor],  # the same shapes and dtype, overwritten
    factor: Tensor,  # [] rho / norm
    adaptive: bool,
) -> None:
    """s <- p, p <- p + factor g (p^2 g where adaptive)."""
    torch._foreach_copy_(list(saved), list(params))
    wide, e = _wide(params), _wide(grads)
    if adaptive:
        e = list(torch._foreach_mul(torch._foreach_mul(e, wide), wide))
    torch._foreach_copy_(list(params), torch._foreach_add(wide, _times(e, factor)))


def sgd_step_(
    params: Sequence[Tensor],  # each of any shape, overwritten
    saved: Sequence[Tensor],  # the same shapes and dtype
    grads: Sequence[Tensor],  # the same shapes and dtype
    buffers: Sequence[Tensor],  # the same shapes and dtype, updated in place; or none
    settings: SgdSettings,
) -> None:
    """One step of SGD from the saved parameters."""
    before = _wide(saved)
    decayed = torch._foreach_add(_wide(grads), before, alpha=settings.weight_decay)
    momentum = decayed
    if buffers:
        momentum = torch._foreach_add(decayed, _wide(buffers), alpha=settings.momentum)
        torch._foreach_copy_(list(buffers), momentum)
    direction = torch._foreach_add(decayed, momentum, alpha=settings.momentum) if settings.nesterov else momentum
    torch._foreach_copy_(list(params), torch._foreach_add(before, _times(direction, -settings.lr)))


def adamw_step_(
    params: Sequence[Tensor],  # each of any shape, overwritten
    saved: Sequence[Tensor],  # the same shapes and dtype
    grads: Sequence[Tensor],  # the same shapes and dtype
    first: Sequence[Tensor],  # the same shapes and dtype, updated in place
    second: Sequence[Tensor],  # the same shapes and dtype, updated in place
    settings: AdamWSettings,
) -> None:
    """One step of AdamW from the saved parameters."""
    s, g = _wide(saved), _wide(grads)
    m = torch._foreach_lerp(_wide(first), g, 1 - settings.beta1)
    v = torch._foreach_addcmul(torch._foreach_mul(_wide(second), settings.beta2), g, g, value=1 - settings.beta2)
    torch._foreach_copy_(list(first), m)
    torch._foreach_copy_(list(second), v)
    roots = torch._foreach_div(torch._foreach_sqrt(v), (1 - settings.beta2**settings.step) ** 0.5)
    torch._foreach_add_(roots, settings.eps)
    direction = torch._foreach_div(torch._foreach_div(m, 1 - settings.beta1**settings.step), roots)
    torch._foreach_add_(direction, s, alpha=settings.weight_decay)  # (1 - lr beta) s - lr d = s - lr (d + beta s)
    torch._foreach_copy_(list(params), torch._foreach_add(s, _times(direction, -settings.lr)))


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    """At least fp32, each rounded once when it is written back."""
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _times(
    tensors: Sequence[Tensor],
    factor: float | Tensor,  # []
) -> list[Tensor]:
    if isinstance(factor, Tensor):
        return list(torch._foreach_mul(list(tensors), factor.to(tensors[0].device, tensors[0].dtype)))
    return list(torch._foreach_mul(list(tensors), factor))
