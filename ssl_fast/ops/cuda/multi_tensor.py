"""Whole-model updates in CUDA (csrc/cuda/multi_tensor.cu); `ssl_fast.ops.multi_tensor` has the equations.

EMA is one launch and LARS two for every 1024 or 832 tensors. They run on the current stream without synchronising, so
a CUDA graph captures them (after one eager call, which loads the kernels).
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ssl_fast.ops.cpp import why_not_built
from ssl_fast.ops.reference.multi_tensor import LarsSettings

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # DType in csrc/ops.h


def no_gpu_for_it() -> str | None:
    """Why the current CUDA device cannot run the module's kernels, or None."""
    return _too_old(torch.cuda.current_device()) if torch.cuda.is_available() else "no CUDA device"


@cache
def _too_old(device: int) -> str | None:
    # CMakeLists.txt: the module has code for 8.0 and what came later.
    old = torch.cuda.get_device_capability(device) < (8, 0)
    return "the GPU's compute capability is below 8.0" if old else None


def unavailable(*tensors: Tensor) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    if (missing := why_not_built("_cuda")) is not None:
        return missing
    if not tensors:
        return no_gpu_for_it()
    if not all(t.is_cuda for t in tensors) or len({t.get_device() for t in tensors}) > 1:
        return "it takes tensors of one CUDA device"
    if (old := _too_old(tensors[0].get_device())) is not None:
        return old
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
    from ssl_fast import _cuda

    if targets:
        dtypes = DTYPES[targets[0].dtype], DTYPES[sources[0].dtype]
        sizes = [t.numel() for t in targets]
        _cuda.ema_update(addresses(targets), addresses(sources), sizes, *dtypes, momentum, *place(targets[0]))


def lars_step_(
    params: Sequence[Tensor],  # each flat in memory, one dtype, updated in place
    grads: Sequence[Tensor],  # the same shapes, layouts and dtype
    buffers: Sequence[Tensor],  # the same shapes and layouts, fp32 (fp64 for fp64 parameters), updated in place
    adapt: Sequence[bool],
    settings: LarsSettings,
) -> None:
    """One LARS step; a learning rate that is a CUDA tensor is read on the device."""
    from ssl_fast import _cuda

    if not params:
        return
    device = params[0].device
    sizes = [p.numel() for p in params]
    lr, *others = settings
    lr_number, lr_tensor = rate(lr, params[0])
    lr_address = 0 if lr_tensor is None else lr_tensor.data_ptr()
    workspace = torch.empty(_cuda.lars_workspace(sizes), dtype=torch.uint8, device=device)
    lists = addresses(params), addresses(grads), addresses(buffers), sizes, adapt
    numbers = DTYPES[params[0].dtype], lr_number, lr_address, *others
    _cuda.lars_step(*lists, *numbers, workspace.data_ptr(), *place(params[0]))


def lookahead_update_(
    fast: Sequence[Tensor],  # each flat in memory, one dtype, updated in place
    slow: Sequence[Tensor],  # the same shapes, layouts and dtype, updated in place
    alpha: float,
) -> None:
    """s <- s + alpha (f - s), f <- s."""
    from ssl_fast import _cuda

    sizes, dtype = [f.numel() for f in fast], DTYPES[fast[0].dtype]
    _cuda.lookahead_update(addresses(fast), addresses(slow), sizes, dtype, alpha, *place(fast[0]))


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where each tensor's memory starts."""
    return [t.data_ptr() for t in tensors]


def rate(
    lr: float | Tensor,  # []
    param: Tensor,
) -> tuple[float, Tensor | None]:
    """A learning rate as (number, None), or, where it is a CUDA tensor, as (0.0, float64 on the parameter's device)."""
    if isinstance(lr, Tensor) and lr.is_cuda:
        return 0.0, lr.to(param.device, torch.float64)
    return float(lr), None


def place(tensor: Tensor) -> tuple[int, int]:
    """Device index and current stream."""
    index = tensor.device.index
    return index, torch._C._cuda_getCurrentRawStream(index)
