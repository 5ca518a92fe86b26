"""LAMB in C++ (csrc/cpu/lamb.cpp); `ssl_fast.ops.lamb` has the equations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.ops.cpp.multi_tensor import DTYPES, addresses
from ssl_fast.ops.cpp.multi_tensor import unavailable as unavailable
from ssl_fast.ops.reference.lamb import LambSettings


def lamb_step_(
    params: Sequence[Tensor],  # each flat in memory, one dtype, updated in place
    grads: Sequence[Tensor],  # the same shapes, layouts and dtype
    first: Sequence[Tensor],  # the same shapes and layouts, fp32 (fp64 for fp64 parameters), updated in place
    second: Sequence[Tensor],  # the same shapes, layouts and dtype as first, updated in place
    adapt: Sequence[bool],
    settings: LambSettings,
) -> None:
    """One LAMB step."""
    from ssl_fast import _cpu

    lists = [addresses(tensors) for tensors in (params, grads, first, second)]
    lr, *others, step = settings
    sizes, dtype = [p.numel() for p in params], DTYPES[params[0].dtype]
    _cpu.lamb_step(*lists, sizes, adapt, dtype, float(lr), *others, float(step), torch.get_num_threads())
