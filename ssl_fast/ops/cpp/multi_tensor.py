"""Whole-model updates in C++ (csrc/cpu/multi_tensor.cpp); `ssl_fast.ops.multi_tensor` has the equations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.ops.cpp import why_not_built
from ssl_fast.ops.reference.multi_tensor import LarsSettings

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # DType in csrc/ops.h


def unavailable(*tensors: Tensor) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    if (missing := why_not_built("_cpu")) is not None:
        return missing
    if not all(t.is_cpu for t in tensors):
        return "it takes CPU tensors"
    if odd := {t.dtype for t in tensors} - DTYPES.keys():
        return f"it takes float32, float64, bfloat16 and float16, got {odd.pop()}"
    if odd_types := set(map(type, tensors)) - {Tensor, torch.nn.Parameter}:
        return f"it takes plain tensors, got a {odd_types.pop().__name__}"
    return "torch.compile traces the reference" if torch.compiler.is_compiling() else None


def ema_update_(
    targets: Sequence[Tensor],  # each flat in memory, one dtype, updated in place
    sources: Sequence[Tensor],  # the same shapes and layouts, one dtype
    momentum: float,
) -> None:
    """t <- m t + (1 - m) s."""
    from ssl_fast import _cpu

    if targets:
        dtypes = DTYPES[targets[0].dtype], DTYPES[sources[0].dtype]
        sizes = [t.numel() for t in targets]
        _cpu.ema_update(addresses(targets), addresses(sources), sizes, *dtypes, momentum, torch.get_num_threads())


def lars_step_(
    params: Sequence[Tensor],  # each flat in memory, one dtype, updated in place
    grads: Sequence[Tensor],  # the same shapes, layouts and dtype
    buffers: Sequence[Tensor],  # the same shapes and layouts, fp32 (fp64 for fp64 parameters), updated in place
    adapt: Sequence[bool],
    settings: LarsSettings,
) -> None:
    """One LARS step."""
    from ssl_fast import _cpu

    if params:
        lists = addresses(params), addresses(grads), addresses(buffers), [p.numel() for p in params]
        lr, *others = settings
        _cpu.lars_step(*lists, adapt, DTYPES[params[0].dtype], float(lr), *others, torch.get_num_threads())


def lookahead_update_(
    fast: Sequence[Tensor],  # each flat in memory, one dtype, updated in place
    slow: Sequence[Tensor],  # the same shapes, layouts and dtype, updated in place
    alpha: float,
) -> None:
    """s <- s + alpha (f - s), f <- s."""
    from ssl_fast import _cpu

    sizes, dtype = [f.numel() for f in fast], DTYPES[fast[0].dtype]
    _cpu.lookahead_update(addresses(fast), addresses(slow), sizes, dtype, alpha, torch.get_num_threads())


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where each tensor's memory starts."""
    return [t.data_ptr() for t in tensors]
