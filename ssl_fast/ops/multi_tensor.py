"""Whole-model updates: one call walks a list of tensors, not one call per tensor.

EMA of a teacher:
    t <- m t + (1 - m) s

Lookahead's slow step:
    s <- s + alpha (f - s),   f <- s

LARS, layer-wise adaptive rate scaling, for each adapted tensor:
    r = eta |p| / (|g| + beta |p| + eps)        (r = 1 where |p| or |g| is zero)
    v <- mu v + r (g + beta p)
    p <- p - lr v                               (Nesterov: p <- p - lr (r (g + beta p) + mu v))
and for a tensor that is not adapted r = 1 and beta = 0.

Letters: t target, s source, m EMA momentum; f fast and s slow weights, alpha slow rate; p parameter, g gradient,
v momentum buffer, eta trust coefficient, beta weight decay, mu momentum. The learning rate multiplies outside the
buffer, as in torch.optim.SGD, so that a schedule acts at once; with a constant rate the steps are those of the paper,
which keeps it inside.

Nothing here synchronises with the host, and the bits do not depend on the number of threads or on the order in which
blocks run.

Reference: You et al. 2017, arXiv:1708.03888, Algorithm 1; Grill et al. 2020, arXiv:2006.07733, Eq. 1 (EMA);
Zhang et al. 2019, arXiv:1907.08610, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.ops.reference import multi_tensor as reference
from ssl_fast.ops.reference.multi_tensor import LarsSettings
from ssl_fast.ops.tensor_lists import check_shapes, matched, parts, split, take

__all__ = ["ema_update_", "lars_step_", "lookahead_update_"]


@torch.no_grad()
def ema_update_(
    targets: Sequence[Tensor],  # each of any shape, updated in place
    sources: Sequence[Tensor],  # the same shapes; may be of another dtype
    momentum: float,
    *,
    impl: str = "auto",
) -> None:
    """Move a teacher towards its student, in place: t <- m t + (1 - m) s.

    The arithmetic is in float32 (float64 where either tensor is), so a float32 teacher may follow a bf16 or fp16
    student. Tensors that are not floating point (counters of batch normalisation, masks) are copied.

    Args:
        targets: the teacher's tensors.
        sources: the student's tensors, in the same order.
        momentum: m in [0, 1]; 1 leaves the teacher as it is, 0 copies the student.
        impl: `"auto"`, or one of `"cuda"`, `"cpp"`, `"reference"`.

    Raises:
        ValueError: lists of different lengths or shapes, or momentum outside [0, 1].
        RuntimeError: `impl` is not available for these tensors.

    Example:
        >>> teacher, student = torch.zeros(2, 3), torch.ones(2, 3)
        >>> ema_update_([teacher], [student], momentum=0.75)
        >>> teacher[0, 0].item()
        0.25

    Reference: Grill et al. 2020, arXiv:2006.07733, Eq. 1.
    """
    targets, sources = list(targets), list(sources)
    check_shapes("sources", sources, "targets", targets)
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    floating, others = split(
        t.is_floating_point() and s.is_floating_point() for t, s in zip(targets, sources, strict=True)
    )
    if others:
        torch._foreach_copy_(take(targets, others), take(sources, others))
    plain, mixed = split(impl == "auto" and _torch_is_faster(targets[i], sources[i]) for i in floating)
    for chosen, indices in (("reference", take(floating, plain)), (impl, take(floating, mixed))):
        t, s = take(targets, indices), take(sources, indices)
        for module, part in parts("multi_tensor", chosen, t, s):
            module.ema_update_(take(t, part), take(s, part), momentum)
        torch.autograd.graph.increment_version(t)


def _torch_is_faster(target: Tensor, source: Tensor) -> bool:
    """On a CPU `lerp_` reads and writes at full bandwidth; the kernel gains where a second dtype needs a copy."""
    return target.is_cpu and target.dtype == source.dtype and target.dtype in (torch.float32, torch.float64)


@torch.no_grad()
def lars_step_(
    params: Sequence[Tensor],  # each of any shape, updated in place
    grads: Sequence[Tensor],  # the same shapes
    buffers: Sequence[Tensor],  # the same shapes, fp32 (fp64 for fp64 parameters), updated in place
    *,
    lr: float | Tensor,
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    trust_coefficient: float = 0.001,
    eps: float = 1e-8,
    nesterov: bool = False,
    clip: bool = False,
    adapt: Sequence[bool] | None = None,
    impl: str = "auto",
) -> None:
    """One LARS step over all parameters, in place: the equation at the head of this module.

    Norms and momentum are float32 (float64 for float64 parameters) whatever the parameters' dtype.

    Args:
        params: parameters.
        grads: their gradients.
        buffers: momentum buffers, zeros before the first step.
        lr: learning rate; a 0-dim tensor on the parameters' device stays there (CUDA graphs replay with its new value).
        momentum: mu.
        weight_decay: beta, applied to adapted tensors only.
        trust_coefficient: eta.
        eps: added to the denominator of the trust ratio.
        nesterov: look ahead along the buffer.
        clip: r <- min(r / lr, 1), so that a layer moves at the rate min(r, lr) (the variant known as LARC).
        adapt: for each parameter, whether it is scaled and decayed; by default those with more than one dimension.
        impl: `"auto"`, or one of `"cuda"`, `"cpp"`, `"reference"`.

    Raises:
        ValueError: lists of different lengths or shapes, or buffers of the wrong dtype.
        RuntimeError: `impl` is not available for these tensors.

    Example:
        >>> p, g, v = torch.full((2, 2), 2.0), torch.full((2, 2), 1.0), torch.zeros(2, 2)
        >>> lars_step_([p], [g], [v], lr=1.0, weight_decay=0.0, trust_coefficient=0.25)
        >>> p[0, 0].item()  # r = 0.25 * 4 / 2 = 0.5
        1.5

    Reference: You et al. 2017, arXiv:1708.03888, Algorithm 1.
    """
    params, grads, buffers = list(params), list(grads), list(buffers)
    adapt = [p.ndim > 1 for p in params] if adapt is None else list(adapt)
    check_shapes("grads", grads, "params", params)
    check_shapes("buffers", buffers, "params", params)
    if len(adapt) != len(params):
        raise ValueError(f"adapt must have one entry for each of the {len(params)} params, got {len(adapt)}")
    settings = LarsSettings(lr, momentum, weight_decay, trust_coefficient, eps, nesterov, clip)
    _check_buffers(params, buffers)
    for module, part in parts("multi_tensor", impl, params, buffers):
        p, v = take(params, part), take(buffers, part)
        g = take(grads, part)
        if module is not reference:
            g = matched(g, p)
        module.lars_step_(p, g, v, take(adapt, part), settings)
    torch.autograd.graph.increment_version([*params, *buffers])


@torch.no_grad()
def lookahead_update_(
    fast: Sequence[Tensor],  # each of any shape, updated in place
    slow: Sequence[Tensor],  # the same shapes and dtypes, updated in place
    alpha: float = 0.5,
    *,
    impl: str = "auto",
) -> None:
    """Move the slow weights towards the fast ones and bring the fast ones back to them, in one pass.

    Args:
        fast: the weights that an optimiser trains.
        slow: the slow weights, in the same order.
        alpha: rate of the slow step, in [0, 1].
        impl: `"auto"`, or one of `"cuda"`, `"cpp"`, `"reference"`.

    Raises:
        ValueError: lists of different lengths, shapes or dtypes, or alpha outside [0, 1].
        RuntimeError: `impl` is not available for these tensors.

    Example:
        >>> fast, slow = torch.full((2, 2), 4.0), torch.zeros(2, 2)
        >>> lookahead_update_([fast], [slow], alpha=0.25)
        >>> fast[0, 0].item(), slow[0, 0].item()
        (1.0, 1.0)

    Reference: Zhang et al. 2019, arXiv:1907.08610, Algorithm 1.
    """
    fast, slow = list(fast), list(slow)
    check_shapes("slow", slow, "fast", fast)
    if odd := [i for i, (f, s) in enumerate(zip(fast, slow, strict=True)) if f.dtype != s.dtype]:
        raise ValueError(f"slow[{odd[0]}] must be {fast[odd[0]].dtype}, as fast[{odd[0]}], got {slow[odd[0]].dtype}")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    for module, indices in parts("multi_tensor", impl, fast, slow):
        module.lookahead_update_(take(fast, indices), take(slow, indices), alpha)
    torch.autograd.graph.increment_version([*fast, *slow])


def _check_buffers(params: list[Tensor], buffers: list[Tensor]) -> None:
    for i, (p, v) in enumerate(zip(params, buffers, strict=True)):
        expected = torch.promote_types(p.dtype, torch.float32)
        if v.dtype != expected:
            raise ValueError(f"buffers[{i}] must be {expected} for a {p.dtype} parameter, got {v.dtype}")
