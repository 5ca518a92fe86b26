"""Whole-model updates: one call walks a list of tensors, not one call per tensor.

EMA of a teacher:
    t <- m t + (1 - m) s

LARS, layer-wise adaptive rate scaling, for each adapted tensor:
    r = eta |p| / (|g| + beta |p| + eps)        (r = 1 where |p| or |g| is zero)
    v <- mu v + r (g + beta p)
    p <- p - lr v                               (Nesterov: p <- p - lr (r (g + beta p) + mu v))
and for a tensor that is not adapted r = 1 and beta = 0.

Letters: t target, s source, m EMA momentum; p parameter, g gradient, v momentum buffer, eta trust coefficient,
beta weight decay, mu momentum. The learning rate multiplies outside the buffer, as in torch.optim.SGD, so that a
schedule acts at once; with a constant rate the steps are those of the paper, which keeps it inside.

The kernels work in place on flat memory, so a parameter in channels_last costs nothing. A gradient or buffer laid out
differently from its parameter is brought to the parameter's layout first; a parameter with gaps (a slice of a larger
tensor) takes the reference. Nothing here synchronises with the host, and the bits do not depend on the number of
threads or on the order in which blocks run.

Reference: You et al. 2017, arXiv:1708.03888, Algorithm 1; Grill et al. 2020, arXiv:2006.07733, Eq. 1 (EMA).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ssl_fast.ops import dispatch
from ssl_fast.ops.reference import multi_tensor as reference
from ssl_fast.ops.reference.multi_tensor import LarsSettings

__all__ = ["ema_update_", "lars_step_"]

_Item = TypeVar("_Item")


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
    _check_shapes("sources", sources, "targets", targets)
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    for kind in _kinds(targets, sources):
        t, s = _take(targets, kind), _take(sources, kind)
        if t[0].is_floating_point() and s[0].is_floating_point():
            _ema_update_kind_(t, s, momentum, impl)
        else:
            torch._foreach_copy_(t, s)


def _ema_update_kind_(
    targets: list[Tensor],  # one dtype, one device
    sources: list[Tensor],  # one dtype, one device
    momentum: float,
    impl: str,
) -> None:
    module = dispatch.choose("multi_tensor", impl, *targets, *sources)
    if module is reference:
        reference.ema_update_(targets, sources, momentum)
        return
    flat, rest = _split(_is_flat(t, s) for t, s in zip(targets, sources, strict=True))
    if rest:
        reference.ema_update_(_take(targets, rest), _take(sources, rest), momentum)
        targets, sources = _take(targets, flat), _take(sources, flat)
    module.ema_update_(targets, sources, momentum)
    torch.autograd.graph.increment_version(targets)


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
    _check_shapes("grads", grads, "params", params)
    _check_shapes("buffers", buffers, "params", params)
    if len(adapt) != len(params):
        raise ValueError(f"adapt must have one entry for each of the {len(params)} params, got {len(adapt)}")
    settings = LarsSettings(lr, momentum, weight_decay, trust_coefficient, eps, nesterov, clip)
    for kind in _kinds(params, buffers):
        _check_buffers(params, buffers, kind)
        lists = _take(params, kind), _take(grads, kind), _take(buffers, kind)
        _lars_step_kind_(*lists, _take(adapt, kind), settings, impl)


def _lars_step_kind_(
    params: list[Tensor],  # one dtype, one device
    grads: list[Tensor],
    buffers: list[Tensor],
    adapt: list[bool],
    settings: LarsSettings,
    impl: str,
) -> None:
    module = dispatch.choose("multi_tensor", impl, *params, *grads, *buffers)
    if module is reference:
        reference.lars_step_(params, grads, buffers, adapt, settings)
        return
    flat, rest = _split(_is_flat(p, v) for p, v in zip(params, buffers, strict=True))
    if rest:
        lists = _take(params, rest), _take(grads, rest), _take(buffers, rest)
        reference.lars_step_(*lists, _take(adapt, rest), settings)
        params, grads, buffers = _take(params, flat), _take(grads, flat), _take(buffers, flat)
        adapt = _take(adapt, flat)
    same = [p.dtype == g.dtype and _is_flat(p, g) for p, g in zip(params, grads, strict=True)]
    grads = [g if s else torch.empty_like(p).copy_(g) for p, g, s in zip(params, grads, same, strict=True)]
    module.lars_step_(params, grads, buffers, adapt, settings)
    torch.autograd.graph.increment_version([*params, *buffers])


def _check_shapes(name: str, tensors: list[Tensor], other: str, others: list[Tensor]) -> None:
    if len(tensors) != len(others):
        raise ValueError(f"{name} must be as many as {other} ({len(others)}), got {len(tensors)}")
    for i, (a, b) in enumerate(zip(tensors, others, strict=True)):
        if a.shape != b.shape:
            raise ValueError(f"{name}[{i}] must have the shape {tuple(b.shape)} of {other}[{i}], got {tuple(a.shape)}")


def _check_buffers(params: list[Tensor], buffers: list[Tensor], kind: list[int]) -> None:
    dtype, found = params[kind[0]].dtype, buffers[kind[0]].dtype
    expected = torch.promote_types(dtype, torch.float32)
    if found != expected:
        raise ValueError(f"buffers[{kind[0]}] must be {expected} for a {dtype} parameter, got {found}")


def _kinds(a: list[Tensor], b: list[Tensor]) -> Iterable[list[int]]:
    """Indices of the pairs that share devices and dtypes, one list for each combination."""
    kinds: dict[Hashable, list[int]] = {}
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        kinds.setdefault((x.get_device(), x.dtype, y.get_device(), y.dtype), []).append(i)
    return kinds.values()


def _take(items: list[_Item], indices: list[int]) -> list[_Item]:
    return [items[i] for i in indices]


def _split(flags: Iterable[bool]) -> tuple[list[int], list[int]]:
    """Indices of the true and of the false ones."""
    sides: tuple[list[int], list[int]] = ([], [])
    for i, flag in enumerate(flags):
        sides[not flag].append(i)
    return sides


def _is_flat(
    a: Tensor,
    b: Tensor,  # the shape of a
) -> bool:
    """Whether both fill one block of memory each, and equal offsets hold equal elements."""
    if a.is_contiguous() and b.is_contiguous():
        return True
    strides = sorted((x, size) for x, size in zip(a.stride(), a.shape, strict=True) if size != 1)
    span = 1
    for stride, size in strides:
        if stride != span:
            return False
        span *= size
    return all(x == y for x, y, size in zip(a.stride(), b.stride(), a.shape, strict=True) if size != 1)
