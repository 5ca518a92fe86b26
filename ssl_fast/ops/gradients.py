"""What is done to all gradients at once before a step: norm, clipping, centralisation.

Global norm, and the gradients clipped to it:
    n = (sum over tensors and elements of g^2)^(1/2)
    g <- g min(1, m / (n + 1e-6))

Gradient centralisation, for each tensor with more than one dimension and each output unit o (first dimension):
    g_o <- g_o - mean(g_o)

Letters: g gradient, n norm, m largest norm.

The norm is summed in float64 from partial sums of a fixed order and never leaves the device: nothing waits for the
host, and two runs give the same bits whatever the number of threads.

Reference: Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1; Yong et al. 2020, arXiv:2004.01461, Eq. 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ssl_fast.ops.tensor_lists import check_shapes, matched, parts, take

__all__ = ["centralize_gradients_", "clip_grad_norm_", "global_norm"]

_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_


@torch.no_grad()
def global_norm(
    tensors: Sequence[Tensor],  # each of any shape
    weights: Sequence[Tensor] | None = None,  # the same shapes
    *,
    impl: str = "auto",
) -> Tensor:  # []
    """The Euclidean norm of all tensors taken as one vector, each element times its weight if given.

    Args:
        tensors: of any floating-point dtypes, on any devices.
        weights: factors, element by element (the parameters themselves, for ASAM).
        impl: `"auto"`, or one of `"cuda"`, `"cpp"`, `"reference"`.

    Returns:
        The norm in float64, on the device of the first tensor; 0 of no tensors.

    Raises:
        ValueError: weights of another number or shape.
        RuntimeError: `impl` is not available for these tensors.

    Example:
        >>> global_norm([torch.full((3, 3), 1.0), torch.full((7,), 1.0)]).item()
        4.0
    """
    tensors = list(tensors)
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    if weights is not None:
        weights = list(weights)
        check_shapes("weights", weights, "tensors", tensors)
        tensors = matched(tensors, weights)
    lists = (tensors,) if weights is None else (tensors, weights)
    sums = [
        module.square_sum(take(tensors, part), None if weights is None else take(weights, part))
        for module, part in parts("gradients", impl, *lists)
    ]
    total: Tensor = sums[0].to(tensors[0].device)
    for other in sums[1:]:
        total = total + other.to(total.device)
    return total.sqrt()


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],  # each of any shape; their .grad is scaled in place
    max_norm: float,
    *,
    impl: str = "auto",
) -> Tensor:  # []
    """Scale all gradients by one factor, so that their global norm is at most `max_norm`.

    As `torch.nn.utils.clip_grad_norm_` for the Euclidean norm. The gradients are only read where the norm is small
    enough. A norm that is not finite makes every gradient so: look at what is returned.

    Args:
        parameters: those without a gradient are skipped.
        max_norm: m, positive.
        impl: `"auto"`, or one of `"cuda"`, `"cpp"`, `"reference"`.

    Returns:
        The norm before clipping, float32 (float64 where a gradient is), on the gradients' device.

    Raises:
        ValueError: max_norm is not positive.
        RuntimeError: `impl` is not available for these tensors.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(4))
        >>> p.grad = torch.full((4,), 3.0)
        >>> clip_grad_norm_([p], max_norm=1.0).item(), round(p.grad.norm().item(), 4)
        (6.0, 1.0)

    Reference: Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = global_norm(grads, impl=impl)
    factor = (max_norm / (norm + _EPS)).clamp(max=1.0)
    for module, part in parts("gradients", impl, grads):
        module.scale_(take(grads, part), factor)
    torch.autograd.graph.increment_version(grads)
    return norm if any(g.dtype == torch.float64 for g in grads) else norm.float()


@torch.no_grad()
def centralize_gradients_(
    grads: Sequence[Tensor],  # each of any shape, updated in place
    *,
    impl: str = "auto",
) -> None:
    """Take the mean of each output unit off its gradient; tensors with fewer than two dimensions are left alone.

    Call it between the backward pass and any optimiser's step.

    Args:
        grads: gradients; the first dimension counts output units, as in `nn.Linear` and `nn.Conv2d`.
        impl: `"auto"`, or one of `"cuda"`, `"cpp"`, `"reference"`.

    Raises:
        RuntimeError: `impl` is not available for these tensors.

    Example:
        >>> g = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
        >>> centralize_gradients_([g])
        >>> g.tolist()
        [[-1.0, 1.0], [0.0, 0.0]]

    Reference: Yong et al. 2020, arXiv:2004.01461, Eq. 1.
    """
    grads = [g for g in grads if g.ndim > 1]
    for module, part in parts("gradients", impl, grads):
        module.centralize_(take(grads, part))
    torch.autograd.graph.increment_version(grads)
