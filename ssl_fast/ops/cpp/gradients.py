"""Norm, scaling and centralisation in C++ (csrc/cpu/gradients.cpp); `ssl_fast.ops.gradients` has the equations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.ops.cpp.multi_tensor import DTYPES, addresses
from ssl_fast.ops.cpp.multi_tensor import unavailable as unavailable
from ssl_fast.ops.reference import gradients as reference
from ssl_fast.ops.tensor_lists import rows_are_blocks, split, take


def square_sum(
    tensors: Sequence[Tensor],  # each flat in memory, one dtype
    weights: Sequence[Tensor] | None,  # the same shapes, layouts and dtype
) -> Tensor:  # []
    """Sum of the squares of all elements, each times its weight if given, in float64."""
    from ssl_fast import _cpu

    lists = addresses(tensors), addresses(weights or ()), [t.numel() for t in tensors]
    found = _cpu.square_sum(*lists, DTYPES[tensors[0].dtype], torch.get_num_threads())
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def scale_(
    tensors: Sequence[Tensor],  # each flat in memory, one dtype, updated in place
    factor: Tensor,  # []
) -> None:
    """x <- factor x."""
    from ssl_fast import _cpu

    lists = addresses(tensors), [t.numel() for t in tensors]
    _cpu.scale(*lists, DTYPES[tensors[0].dtype], float(factor), torch.get_num_threads())


def centralize_(
    grads: Sequence[Tensor],  # each flat in memory with more than one dimension, one dtype, updated in place
) -> None:
    """g_o <- g_o - mean(g_o)."""
    from ssl_fast import _cpu

    blocks, rest = split(rows_are_blocks(g) for g in grads)
    reference.centralize_(take(grads, rest))
    if blocks:
        grads = take(grads, blocks)
        lists = addresses(grads), [g.numel() for g in grads], [g.shape[0] for g in grads]
        _cpu.centralize(*lists, DTYPES[grads[0].dtype], torch.get_num_threads())
