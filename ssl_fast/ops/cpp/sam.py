"""SAM's updates in C++ (csrc/cpu/sam.cpp); `ssl_fast.ops.sam` has the equations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.ops.cpp.multi_tensor import DTYPES, addresses
from ssl_fast.ops.cpp.multi_tensor import unavailable as unavailable
from ssl_fast.ops.reference.sam import AdamWSettings, SgdSettings


def ascend_(
    params: Sequence[Tensor],  # each flat in memory, one dtype, updated in place
    grads: Sequence[Tensor],  # the same shapes, layouts and dtype
    saved: Sequence[Tensor],  # the same shapes, layouts and dtype, overwritten
    factor: Tensor,  # [] rho / norm
    adaptive: bool,
) -> None:
    """s <- p, p <- p + factor g (p^2 g where adaptive)."""
    from ssl_fast import _cpu

    lists = addresses(params), addresses(grads), addresses(saved), [p.numel() for p in params]
    _cpu.sam_ascend(*lists, DTYPES[params[0].dtype], float(factor), adaptive, torch.get_num_threads())


def sgd_step_(
    params: Sequence[Tensor],  # each flat in memory, one dtype, overwritten
    saved: Sequence[Tensor],  # the same shapes, layouts and dtype
    grads: Sequence[Tensor],  # the same shapes, layouts and dtype
    buffers: Sequence[Tensor],  # the same shapes, layouts and dtype, updated in place; or none
    settings: SgdSettings,
) -> None:
    """One step of SGD from the saved parameters."""
    from ssl_fast import _cpu

    lists = addresses(params), addresses(saved), addresses(grads), addresses(buffers), [p.numel() for p in params]
    lr, *others = settings
    _cpu.sam_sgd(*lists, DTYPES[params[0].dtype], float(lr), *others, torch.get_num_threads())


def adamw_step_(
    params: Sequence[Tensor],  # each flat in memory, one dtype, overwritten
    saved: Sequence[Tensor],  # the same shapes, layouts and dtype
    grads: Sequence[Tensor],  # the same shapes, layouts and dtype
    first: Sequence[Tensor],  # the same shapes, layouts and dtype, updated in place
    second: Sequence[Tensor],  # the same shapes, layouts and dtype, updated in place
    settings: AdamWSettings,
) -> None:
    """One step of AdamW from the saved parameters."""
    from ssl_fast import _cpu

    lists = [addresses(tensors) for tensors in (params, saved, grads, first, second)]
    lr, *others = settings
    sizes, dtype = [p.numel() for p in params], DTYPES[params[0].dtype]
    _cpu.sam_adamw(*lists, sizes, dtype, float(lr), *others, torch.get_num_threads())
