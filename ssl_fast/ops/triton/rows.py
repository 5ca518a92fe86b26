"""Launch of the row kernel shared by the ops: unit rows, and the cosine of each row with its positive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import tiles

EPS = 1e-12


def unit_rows(
    x: Tensor,  # [N, D]
    normalize: bool,
    num_planes: int,
    positive: Tensor | None = None,  # [N] int64
    cosine: Tensor | None = None,  # [N] fp32 out: of each row with its positive
) -> Tensor:
    """Unit rows [padded N, planes * D padded to the kernels' block], as sums of bfloat16 planes.

    The padding lets a tile start at any row (a rank's first row is no multiple of the tile) and end beyond the last.
    """
    from .blocks import normalize_kernel

    num_rows, dim = x.shape
    block_d, chunks = tiles.width(dim, num_planes)
    plane = block_d * chunks
    padded = (-(-num_rows // tiles.ROW_PADDING) + 1) * tiles.ROW_PADDING
    z = torch.empty(padded, num_planes * plane, dtype=torch.bfloat16, device=x.device)
    block_r, whole = row_block(plane)
    normalize_kernel[(padded // block_r,)](
        x,
        positive,
        z,
        cosine,
        num_rows,
        D=dim,
        WIDTH=plane,
        BLOCK_R=block_r,
        BLOCK_D=whole,
        PLANES=num_planes,
        EPS=EPS,
        NORMALIZE=normalize,
        WITH_COSINE=positive is not None,
        UPCAST=tiles.interpreted(),
        **tiles.ROW_OPTIONS,
    )
    return z


def row_block(width: int) -> tuple[int, int]:
    """(rows, numbers) of a block that holds whole rows in registers."""
    whole = 1 << (width - 1).bit_length()
    return max(1, 2048 // whole), whole


def row_options(whole: int) -> dict[str, Any]:
    """How to compile a kernel that holds blocks of `row_block`: the longest rows are shared out among more warps."""
    return {**tiles.ROW_OPTIONS, "num_warps": max(4, whole // 512)}
