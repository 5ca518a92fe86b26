"""Norm, scaling and centralisation in CUDA (csrc/cuda/gradients.cu); `ssl_fast.ops.gradients` has the equations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.ops.cuda.multi_tensor import DTYPES, addresses, place
from ssl_fast.ops.cuda.multi_tensor import unavailable as unavailable
from ssl_fast.ops.reference import gradients as reference
from ssl_fast.ops.tensor_lists import rows_are_blocks, split, take


def square_sum(
    tensors: Sequence[Tensor],  # each flat in memory, one dtype
    weights: Sequence[Tensor] | None,  # the same shapes, layouts and dtype
) -> Tensor:  # []
    """Sum of the squares of all elements, each times its weight if given, in float64."""
    from ssl_fast import _cuda

    sizes, device = [t.numel() for t in tensors], tensors[0].device
    workspace = torch.empty(_cuda.square_sum_workspace(sizes), dtype=torch.uint8, device=device)
    found = torch.empty((), dtype=torch.float64, device=device)
    lists = addresses(tensors), addresses(weights or ()), sizes, DTYPES[tensors[0].dtype]
    _cuda.square_sum(*lists, workspace.data_ptr(), found.data_ptr(), *place(tensors[0]))
    return found


def scale_(
    tensors: Sequence[Tensor],  # each flat in memory, one dtype, updated in place
    factor: Tensor,  # []
) -> None:
    """x <- factor x; the factor is read on the device, and nothing else where it is 1."""
    from ssl_fast import _cuda

    there = factor.to(tensors[0].device, torch.float64)
    lists = addresses(tensors), [t.numel() for t in tensors], DTYPES[tensors[0].dtype]
    _cuda.scale(*lists, there.data_ptr(), *place(tensors[0]))


def centralize_(
    grads: Sequence[Tensor],  # each flat in memory with more than one dimension, one dtype, updated in place
) -> None:
    """g_o <- g_o - mean(g_o)."""
    from ssl_fast import _cuda

    blocks, rest = split(rows_are_blocks(g) for g in grads)
    reference.centralize_(take(grads, rest))
    if blocks:
        grads = take(grads, blocks)
        lists = addresses(grads), [g.numel() for g in grads], [g.shape[0] for g in grads]
        _cuda.centralize(*lists, DTYPES[grads[0].dtype], *place(grads[0]))
