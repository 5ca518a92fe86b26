"""Norm, scaling and centralisation of gradients in plain torch; `ssl_fast.ops.gradients` has the equations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.ops.reference.multi_tensor import unavailable as unavailable


def square_sum(
    tensors: Sequence[Tensor],  # each of any shape
    weights: Sequence[Tensor] | None,  # the same shapes
) -> Tensor:  # []
    """Sum of the squares of all elements, each times its weight if given, in float64."""
    wide = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    if weights is not None:
        wide = list(torch._foreach_mul(wide, [w.to(t.dtype) for t, w in zip(wide, weights, strict=True)]))
    return torch.stack(torch._foreach_norm(wide)).double().square().sum()


def scale_(
    tensors: Sequence[Tensor],  # each of any shape, updated in place
    factor: Tensor,  # []
) -> None:
    """x <- factor x, with the factor on its device."""
    for tensor in tensors:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        tensor.copy_(tensor.to(wide) * factor.to(tensor.device, wide))


def centralize_(
    grads: Sequence[Tensor],  # each with more than one dimension, updated in place
) -> None:
    """g_o <- g_o - mean(g_o)."""
    for grad in grads:
        if grad.numel():
            wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
            grad.copy_(wide - wide.mean(dim=tuple(range(1, grad.ndim)), keepdim=True))
