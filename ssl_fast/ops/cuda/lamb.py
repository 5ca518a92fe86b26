"""LAMB in CUDA (csrc/cuda/lamb.cu), two launches for every 704 tensors; `ssl_fast.ops.lamb` has the equations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.ops.cuda.multi_tensor import DTYPES, addresses, place, rate
from ssl_fast.ops.cuda.multi_tensor import unavailable as unavailable
from ssl_fast.ops.reference.lamb import LambSettings


def lamb_step_(
    params: Sequence[Tensor],  # each flat in memory, one dtype, updated in place
    grads: Sequence[Tensor],  # the same shapes, layouts and dtype
    first: Sequence[Tensor],  # the same shapes and layouts, fp32 (fp64 for fp64 parameters), updated in place
    second: Sequence[Tensor],  # the same shapes, layouts and dtype as first, updated in place
    adapt: Sequence[bool],
    settings: LambSettings,
) -> None:
    """One LAMB step; a learning rate and a step number that are CUDA tensors are read on the device."""
    from ssl_fast import _cuda

    device = params[0].device
    lists = [addresses(tensors) for tensors in (params, grads, first, second)]
    sizes, dtype = [p.numel() for p in params], DTYPES[params[0].dtype]
    lr, *others, step = settings
    number, tensor = rate(lr, params[0])
    address = 0 if tensor is None else tensor.data_ptr()
    there = torch.as_tensor(step, dtype=torch.float64, device=device)  # []
    workspace = torch.empty(_cuda.lamb_workspace(sizes), dtype=torch.uint8, device=device)
    numbers = dtype, number, address, *others, there.data_ptr(), workspace.data_ptr()
    _cuda.lamb_step(*lists, sizes, adapt, *numbers, *place(params[0]))
