"""Two towers on a GPU: cuBLAS products of raw rows, a chunk at a time, with Triton kernels between them.

A chunk of products is at most 64 MiB whatever the batch. Matrix products stay with cuBLAS, which a Triton kernel does
not reach at the widths of these towers (512 to 1,024). bf16 rows are multiplied as they are, into fp32; fp32 rows as
torch is told to (`torch.set_float32_matmul_precision`); fp16 rows as fp32, since fp16 cannot hold the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import tiles

_CHUNK = 1 << 24  # elements of a chunk of products
BLOCK_R, BLOCK_C = 32, 128


class Tower:
    """Rows as they are multiplied [M, D], their inverse norms [M] (1 without `normalize`), norms [M, 1], unit rows."""

    def __init__(
        self,
        x: Tensor,  # [M, D]
        normalize: bool,
    ) -> None:
        self.rows = (x.float() if x.dtype == torch.float16 else x).contiguous()
        self.normalize = normalize
        norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).clamp_min(1e-12)
        self.norm = norm if normalize else torch.ones_like(norm)
        self.inverse = self.norm.reciprocal()

    def unit(self, mine: slice) -> Tensor:
        """Unit rows in fp32."""
        return self.rows[mine].float() * self.inverse[mine, None]

    def finish(
        self,
        dz: Tensor,  # [R, D]
        mine: slice,
    ) -> Tensor:
        """The gradient with respect to the rows before normalisation. Below the clamp the norm is a constant."""
        if not self.normalize:
            return dz
        z, norm = self.unit(mine), self.norm[mine, None]
        along = (z * dz).sum(1, keepdim=True)
        return (dz - z * torch.where(norm > 1e-12, along, 0)) / norm


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, accumulated and returned in fp32."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):  # torch 2.8
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def chunks(rows: tuple[int, int], num_columns: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the rows whose products with all columns make a chunk."""
    most = max(BLOCK_R, _CHUNK // max(1, num_columns) // BLOCK_R * BLOCK_R)
    for begin in range(rows[0], rows[1], most):
        yield begin, min(rows[1], begin + most)


def grid(num_rows: int, num_columns: int) -> tuple[int, int]:
    """Tiles of a chunk, down and across."""
    return -(-num_rows // BLOCK_R), -(-num_columns // BLOCK_C)


def weights_like(products: Tensor, rows: Tensor) -> Tensor:
    """Where a chunk's weights go: in place of its products when rows are fp32."""
    return products if rows.dtype == torch.float32 else torch.empty_like(products, dtype=rows.dtype)


def options() -> dict[str, Any]:
    """Tile and compilation of all kernels of towers_kernels.py."""
    return {"BLOCK_R": BLOCK_R, "BLOCK_C": BLOCK_C, **tiles.ROW_OPTIONS}
