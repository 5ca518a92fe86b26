"""LAMB: layer-wise adaptive moments for very large batches.

    m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    u = (m / (1 - b1^t)) / ((v / (1 - b2^t))^(1/2) + eps) + beta p
    r = |p| / |u|        (1 where either norm is zero)
    p <- p - lr r u
and for a tensor that is not adapted r = 1 and beta = 0.

Letters: p parameter, g gradient, m and v moments, b1 and b2 betas, u direction, r trust ratio, beta weight decay,
t step.

The kernels read u twice from the moments instead of storing it. Nothing synchronises with the host, and the bits do not
depend on the number of threads or on the order in which blocks run.

Reference: You et al. 2020, arXiv:1904.00962, Algorithm 2, with phi(x) = x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.ops.reference import lamb as reference
from ssl_fast.ops.reference.lamb import LambSettings
from ssl_fast.ops.tensor_lists import check_shapes, matched, parts, take

__all__ = ["lamb_step_"]


@torch.no_grad()
def lamb_step_(
    params: Sequence[Tensor],  # each of any shape, updated in place
    grads: Sequence[Tensor],  # the same shapes
    first: Sequence[Tensor],  # the same shapes, fp32 (fp64 for fp64 parameters), updated in place
    second: Sequence[Tensor],  # the same shapes, fp32 (fp64 for fp64 parameters), updated in place
    *,
    step: float | Tensor,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    bias_correction: bool = True,
    clip: bool = False,
    adapt: Sequence[bool] | None = None,
    impl: str = "auto",
) -> None:
    """One LAMB step over all parameters, in place: the equation at the head of this module.

    Norms and moments are float32 (float64 for float64 parameters) whatever the parameters' dtype.

    Args:
        params: parameters.
        grads: their gradients.
        first: first moments m, zeros before the first step.
        second: second moments v, zeros before the first step.
        step: t, the number of this step, from 1. A 0-dim tensor on the parameters' device is read there.
        lr: learning rate; a 0-dim tensor on the parameters' device stays there (CUDA graphs replay with its new value).
        betas: b1 and b2.
        eps: added to the root of the second moment.
        weight_decay: beta, applied to adapted tensors only.
        bias_correction: divide the moments by 1 - b^t.
        clip: r <- min(r, 1).
        adapt: for each parameter, whether it is scaled and decayed; by default those with more than one dimension.
        impl: `"auto"`, or one of `"cuda"`, `"cpp"`, `"reference"`.

    Raises:
        ValueError: lists of different lengths or shapes, or moments of the wrong dtype.
        RuntimeError: `impl` is not available for these tensors.

    Example:
        >>> p, g, m, v = torch.full((2, 2), 4.0), torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2, 2)
        >>> lamb_step_([p], [g], [m], [v], step=1, lr=0.25, weight_decay=0.0)
        >>> round(p[0, 0].item(), 4)  # u = 1, r = 8 / 2 = 4
        3.0

    Reference: You et al. 2020, arXiv:1904.00962, Algorithm 2.
    """
    params, grads, first, second = list(params), list(grads), list(first), list(second)
    adapt = [p.ndim > 1 for p in params] if adapt is None else list(adapt)
    check_shapes("grads", grads, "params", params)
    for name, moments in (("first", first), ("second", second)):
        check_shapes(name, moments, "params", params)
        _check_dtypes(name, moments, params)
    if len(adapt) != len(params):
        raise ValueError(f"adapt must have one entry for each of the {len(params)} params, got {len(adapt)}")
    settings = LambSettings(lr, *betas, eps, weight_decay, bias_correction, clip, step)
    for module, part in parts("lamb", impl, params, first, second):
        p, g = take(params, part), take(grads, part)
        if module is not reference:
            g = matched(g, p)
        module.lamb_step_(p, g, take(first, part), take(second, part), take(adapt, part), settings)
    torch.autograd.graph.increment_version([*params, *first, *second])


def _check_dtypes(name: str, moments: list[Tensor], params: list[Tensor]) -> None:
    for i, (m, p) in enumerate(zip(moments, params, strict=True)):
        expected = torch.promote_types(p.dtype, torch.float32)
        if m.dtype != expected:
            raise ValueError(f"{name}[{i}] must be {expected} for a {p.dtype} parameter, got {m.dtype}")
