"""SAM's updates in CUDA (csrc/cuda/sam.cu); `ssl_fast.ops.sam` has the equations.

One launch for every few hundred tensors, on the current stream, without synchronising: a CUDA graph captures them. The
number of AdamW's step is the host's, so a graph of AdamW wants the base optimiser's own `capturable=True` instead.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.ops.cuda.multi_tensor import DTYPES, addresses, place, rate
from ssl_fast.ops.cuda.multi_tensor import unavailable as unavailable
from ssl_fast.ops.reference.sam import AdamWSettings, SgdSettings


def ascend_(
    params: Sequence[Tensor],  # each flat in memory, one dtype, updated in place
    grads: Sequence[Tensor],  # the same shapes, layouts and dtype
    saved: Sequence[Tensor],  # the same shapes, layouts and dtype, overwritten
    factor: Tensor,  # [] rho / norm
    adaptive: bool,
) -> None:
    """s <- p, p <- p + factor g (p^2 g where adaptive); the factor is read on the device."""
    from ssl_fast import _cuda

    there = factor.to(params[0].device, torch.float64)
    lists = addresses(params), addresses(grads), addresses(saved), [p.numel() for p in params]
    _cuda.sam_ascend(*lists, DTYPES[params[0].dtype], there.data_ptr(), adaptive, *place(params[0]))


def sgd_step_(
    params: Sequence[Tensor],  # each flat in memory, one dtype, overwritten
    saved: Sequence[Tensor],  # the same shapes, layouts and dtype
    grads: Sequence[Tensor],  # the same shapes, layouts and dtype
    buffers: Sequence[Tensor],  # the same shapes, layouts and dtype, updated in place; or none
    settings: SgdSettings,
) -> None:
    """One step of SGD from the saved parameters; a learning rate that is a CUDA tensor is read on the device."""
    from ssl_fast import _cuda

    lists = addresses(params), addresses(saved), addresses(grads), addresses(buffers), [p.numel() for p in params]
    lr, *others = settings
    number, tensor = rate(lr, params[0])
    address = 0 if tensor is None else tensor.data_ptr()
    _cuda.sam_sgd(*lists, DTYPES[params[0].dtype], number, address, *others, *place(params[0]))


def adamw_step_(
    params: Sequence[Tensor],  # each flat in memory, one dtype, overwritten
    saved: Sequence[Tensor],  # the same shapes, layouts and dtype
    grads: Sequence[Tensor],  # the same shapes, layouts and dtype
    first: Sequence[Tensor],  # the same shapes, layouts and dtype, updated in place
    second: Sequence[Tensor],  # the same shapes, layouts and dtype, updated in place
    settings: AdamWSettings,
) -> None:
    """One step of AdamW from the saved parameters; a learning rate that is a CUDA tensor is read on the device."""
    from ssl_fast import _cuda

    lists = [addresses(tensors) for tensors in (params, saved, grads, first, second)]
    lr, *others = settings
    number, tensor = rate(lr, params[0])
    address = 0 if tensor is None else tensor.data_ptr()
    sizes, dtype = [p.numel() for p in params], DTYPES[params[0].dtype]
    _cuda.sam_adamw(*lists, sizes, dtype, number, address, *others, *place(params[0]))
