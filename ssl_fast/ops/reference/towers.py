"""What the plain forms of the losses over two towers share: unit rows, blocks of them, and the way back."""

import torch
from torch import Tensor

from ssl_fast.ops.contract import widened

_BLOCK = 1 << 22  # elements of one block of logits


def unit(
    x: Tensor,  # [N, D]
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Rows at unit length (as they are without `normalize`) [N, D], in at least fp32, and clamped norms [N, 1]."""
    x = widened(x)
    norm = x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return (x / norm, norm) if normalize else (x, norm)


def through_norm(
    dz: Tensor,  # [N, D]
    z: Tensor,  # [N, D]
    norm: Tensor,  # [N, 1]
) -> Tensor:
    """The gradient with respect to the rows before normalisation. Below the clamp the norm is a constant."""
    along = (z * dz).sum(1, keepdim=True)
    return (dz - z * torch.where(norm > 1e-12, along, 0)) / norm


def blocks(rows: tuple[int, int], num_columns: int, device: torch.device) -> list[Tensor]:
    """The indices begin..end in pieces whose logits against all columns make a block."""
    index = torch.arange(rows[0], rows[1], device=device)
    return list(torch.split(index, max(1, _BLOCK // max(1, num_columns))))
