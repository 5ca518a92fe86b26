"""Sharpness-aware minimisation: the two updates of parameters that stand between and after its two backward passes.

Up, from the gradients g of the first pass, to the sharpest place within rho:
    e = rho g / |g|                  (adaptive, ASAM: e = rho p^2 g / |p g|)
    s <- p,   p <- p + e

Down, from the gradients g of the second pass: one step of the base optimiser from s, not from p - e, which would round.
    SGD:    v <- mu v + g + beta s;   p <- s - lr v            (Nesterov: p <- s - lr (g + beta s + mu v))
    AdamW:  m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
            p <- (1 - lr beta) s - lr (m / (1 - b1^t)) / ((v / (1 - b2^t))^(1/2) + eps)

Letters: p parameter, s its saved copy, g gradient, e perturbation, |.| norm over all parameters, v momentum or second
moment, m first moment, mu momentum, b1 and b2 betas, beta weight decay, t step.

The norm stays on the device, nothing waits for the host, and two runs give the same bits.

Reference: Foret et al. 2021, arXiv:2010.01412, Eq. 2 and 3; Kwon et al. 2021, arXiv:2102.11600, Eq. 3; Loshchilov
and Hutter 2019, arXiv:1711.05101, Algorithm 2 (AdamW).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.ops.reference.sam import AdamWSettings, SgdSettings
from ssl_fast.ops.tensor_lists import check_shapes, matched, parts, take

__all__ = ["sam_adamw_step_", "sam_ascend_", "sam_sgd_step_"]


@torch.no_grad()
def sam_ascend_(
    params: Sequence[Tensor],  # each of any shape, updated in place
    grads: Sequence[Tensor],  # the same shapes
    saved: Sequence[Tensor],  # the same shapes, dtypes and layouts, overwritten
    *,
    norm: Tensor,  # []
    rho: float = 0.05,
    adaptive: bool = False,
    eps: float = 1e-12,
    impl: str = "auto",
) -> None:
    """Save the parameters and climb: s <- p, p <- p + e.

    Args:
        params: parameters.
        grads: gradients of the first pass; any common scale cancels, so they may carry a loss scale.
        saved: receives the parameters, bit by bit.
        norm: |g|, or |p g| where adaptive, of all parameters of the model: `ssl_fast.ops.gradients.global_norm`.
        rho: length of the perturbation.
        adaptive: ASAM.
        eps: added to the norm.
        impl: `"auto"`, or one of `"cuda"`, `"cpp"`, `"reference"`.

    Raises:
        ValueError: lists of different lengths, shapes or dtypes.
        RuntimeError: `impl` is not available for these tensors.

    Example:
        >>> p, g, s = torch.zeros(2), torch.tensor([3.0, 4.0]), torch.empty(2)
        >>> sam_ascend_([p], [g], [s], norm=g.norm(), rho=0.5)
        >>> [round(x, 4) for x in p.tolist()], s.tolist()
        ([0.3, 0.4], [0.0, 0.0])

    Reference: Foret et al. 2021, arXiv:2010.01412, Eq. 2; Kwon et al. 2021, arXiv:2102.11600, Eq. 3.
    """
    params, grads, saved = list(params), list(grads), list(saved)
    check_shapes("grads", grads, "params", params)
    _check_alike("saved", saved, params)
    factor = rho / (norm.double() + eps)
    for module, part in parts("sam", impl, params, saved):
        p = take(params, part)
        module.ascend_(p, matched(take(grads, part), p), take(saved, part), factor, adaptive)
    torch.autograd.graph.increment_version([*params, *saved])


@torch.no_grad()
def sam_sgd_step_(
    params: Sequence[Tensor],  # each of any shape, overwritten
    saved: Sequence[Tensor],  # the same shapes, dtypes and layouts
    grads: Sequence[Tensor],  # the same shapes
    buffers: Sequence[Tensor],  # the same shapes and dtypes, updated in place; or none at all
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    impl: str = "auto",
) -> None:
    """One step of SGD from the saved parameters, in one pass over memory.

    Args:
        params: parameters; what they hold is not read.
        saved: what `sam_ascend_` saved.
        grads: gradients of the second pass.
        buffers: momentum, zeros before the first step; an empty list where momentum is 0.
        lr: learning rate; a 0-dim tensor on the parameters' device stays there.
        momentum: mu.
        weight_decay: beta.
        nesterov: look ahead along the momentum.
        impl: `"auto"`, or one of `"cuda"`, `"cpp"`, `"reference"`.

    Raises:
        ValueError: lists of different lengths, shapes or dtypes, or momentum without buffers.
        RuntimeError: `impl` is not available for these tensors.

    Example:
        >>> p, s, g = torch.full((2,), 9.0), torch.ones(2), torch.ones(2)
        >>> sam_sgd_step_([p], [s], [g], [], lr=0.5)
        >>> p.tolist()
        [0.5, 0.5]

    Reference: Foret et al. 2021, arXiv:2010.01412, Eq. 3 and Algorithm 1.
    """
    params, saved, grads, buffers = list(params), list(saved), list(grads), list(buffers)
    check_shapes("grads", grads, "params", params)
    _check_alike("saved", saved, params)
    if buffers or momentum:
        _check_alike("buffers", buffers, params)
    settings = SgdSettings(lr, momentum, weight_decay, nesterov)
    lists = (params, saved, buffers) if buffers else (params, saved)
    for module, part in parts("sam", impl, *lists):
        p, v = take(params, part), take(buffers, part) if buffers else []
        module.sgd_step_(p, take(saved, part), matched(take(grads, part), p), v, settings)
    torch.autograd.graph.increment_version([*params, *buffers])


@torch.no_grad()
def sam_adamw_step_(
    params: Sequence[Tensor],  # each of any shape, overwritten
    saved: Sequence[Tensor],  # the same shapes, dtypes and layouts
    grads: Sequence[Tensor],  # the same shapes
    first: Sequence[Tensor],  # the same shapes and dtypes, updated in place
    second: Sequence[Tensor],  # the same shapes and dtypes, updated in place
    *,
    step: float,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    impl: str = "auto",
) -> None:
    """One step of AdamW from the saved parameters, in one pass over memory.

    Args:
        params: parameters; what they hold is not read.
        saved: what `sam_ascend_` saved.
        grads: gradients of the second pass.
        first: first moments m, zeros before the first step.
        second: second moments v, zeros before the first step.
        step: t, the number of this step, from 1.
        lr: learning rate; a 0-dim tensor on the parameters' device stays there.
        betas: b1 and b2.
        eps: added to the root of the second moment.
        weight_decay: beta.
        impl: `"auto"`, or one of `"cuda"`, `"cpp"`, `"reference"`.

    Raises:
        ValueError: lists of different lengths, shapes or dtypes, or a step below 1.
        RuntimeError: `impl` is not available for these tensors.

    Example:
        >>> p, s, g, m, v = torch.empty(1), torch.ones(1), torch.full((1,), 5.0), torch.zeros(1), torch.zeros(1)
        >>> sam_adamw_step_([p], [s], [g], [m], [v], step=1, lr=0.1, weight_decay=0.0)
        >>> round(p.item(), 4)
        0.9

    Reference: Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2.
    """
    params, saved, grads, first, second = list(params), list(saved), list(grads), list(first), list(second)
    check_shapes("grads", grads, "params", params)
    for name, tensors in (("saved", saved), ("first", first), ("second", second)):
        _check_alike(name, tensors, params)
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    settings = AdamWSettings(lr, *betas, eps, weight_decay, step)
    for module, part in parts("sam", impl, params, saved, first, second):
        p = take(params, part)
        g = matched(take(grads, part), p)
        module.adamw_step_(p, take(saved, part), g, take(first, part), take(second, part), settings)
    torch.autograd.graph.increment_version([*params, *first, *second])


def _check_alike(name: str, tensors: list[Tensor], params: list[Tensor]) -> None:
    check_shapes(name, tensors, "params", params)
    for i, (t, p) in enumerate(zip(tensors, params, strict=True)):
        if t.dtype != p.dtype:
            raise ValueError(f"{name}[{i}] must be {p.dtype}, as params[{i}], got {t.dtype}")
