"""BYOL's distance and its gradient in Triton: each row is read once, and one launch does it all.

Bytes an element: those of p and z read, 4 written for the gradient: 12 in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import tiles
from .rows import EPS, row_block, row_options


def unavailable(*tensors: Tensor) -> str | None:
    """Why the kernel cannot take (p, z); None if it can."""
    return tiles.unavailable(*tensors, products=False)


def forward(
    p: Tensor,  # [N, D]
    z: Tensor,  # [N, D]
    normalize: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Per row: the distance [N] and, when wanted, its gradient dp [N, D]; fp32."""
    from .row_kernels import distance_kernel

    N, D = p.shape
    distance = torch.zeros(N, dtype=torch.float32, device=p.device)
    dp = torch.empty(N, D, dtype=torch.float32, device=p.device) if with_grad else None
    if N == 0 or D == 0:
        return distance, dp
    block_r, whole = row_block(D)
    with tiles.on_device(p):
        distance_kernel[(-(-N // block_r),)](
            p.contiguous(),
            z.contiguous(),
            distance,
            dp,
            N,
            D=D,
            BLOCK_R=block_r,
            BLOCK_D=whole,
            EPS=EPS,
            NORMALIZE=normalize,
            WITH_GRAD=with_grad,
            **row_options(whole),
        )
    return distance, dp
