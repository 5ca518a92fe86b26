"""Lists of tensors as the multi-tensor ops take them: shapes checked, sorted by kind, flat in memory or not.

The kernels work in place on flat memory, so a parameter in channels_last costs nothing. A gradient or buffer laid out
differently from its parameter is brought to the parameter's layout first; a parameter with gaps (a slice of a larger
tensor) takes the reference.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from ssl_fast.ops import dispatch

_Item = TypeVar("_Item")


def check_shapes(name: str, tensors: list[Tensor], other: str, others: list[Tensor]) -> None:
    """Raises ValueError unless the two lists pair up, shape by shape."""
    if len(tensors) != len(others):
        raise ValueError(f"{name} must be as many as {other} ({len(others)}), got {len(tensors)}")
    for i, (a, b) in enumerate(zip(tensors, others, strict=True)):
        if a.shape != b.shape:
            raise ValueError(f"{name}[{i}] must have the shape {tuple(b.shape)} of {other}[{i}], got {tuple(a.shape)}")


def parts(
    op: str,
    impl: str,
    *lists: list[Tensor],  # the same shapes in each list
) -> Iterator[tuple[ModuleType, list[int]]]:
    """Which module of `op` takes which indices: tensors of one device and dtypes, flat ones apart from others."""
    for kind in kinds(*lists):
        module = dispatch.choose(op, impl, *(t for tensors in lists for t in take(tensors, kind)))
        if module.__name__.startswith("ssl_fast.ops.reference"):
            yield module, kind
            continue
        flat, rest = split(all(is_flat(lists[0][i], tensors[i]) for tensors in lists) for i in kind)
        if flat:
            yield module, take(kind, flat)
        if rest:
            yield dispatch.choose(op, "reference"), take(kind, rest)


def matched(
    tensors: Sequence[Tensor],  # the shapes of params
    params: Sequence[Tensor],
) -> list[Tensor]:
    """Each tensor in the dtype and layout of its parameter: itself where it has them, else a copy."""
    same = [t.dtype == p.dtype and is_flat(p, t) for t, p in zip(tensors, params, strict=True)]
    return [t if s else torch.empty_like(p).copy_(t) for t, p, s in zip(tensors, params, same, strict=True)]


def kinds(*lists: list[Tensor]) -> Iterable[list[int]]:
    """Indices of the tensors that share devices and dtypes in every list, one list for each combination."""
    found: dict[Hashable, list[int]] = {}
    for i, row in enumerate(zip(*lists, strict=True)):
        found.setdefault(tuple((t.get_device(), t.dtype) for t in row), []).append(i)
    return found.values()


def take(items: Sequence[_Item], indices: list[int]) -> list[_Item]:
    """The items at these indices."""
    return [items[i] for i in indices]


def split(flags: Iterable[bool]) -> tuple[list[int], list[int]]:
    """Indices of the true and of the false ones."""
    sides: tuple[list[int], list[int]] = ([], [])
    for i, flag in enumerate(flags):
        sides[not flag].append(i)
    return sides


def is_flat(
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


def rows_are_blocks(
    a: Tensor,  # [rows, ...], flat in memory
) -> bool:
    """Whether each a[i] fills one block of memory and the blocks follow one another (channels_last too)."""
    return a.shape[0] == 1 or a.numel() == 0 or a.stride(0) == a.numel() // a.shape[0]
