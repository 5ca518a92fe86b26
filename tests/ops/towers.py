"""Inputs of the losses over two towers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def towers(
    num_rows: int, dim: int, alignment: float = 0.5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Images and texts [N, D] whose pairs have about this cosine, with lengths between 0.5 and 2."""
    generator = torch.Generator().manual_seed(seed)
    first, noise = (torch.randn(num_rows, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    first, noise = F.normalize(first), F.normalize(noise)
    second = alignment * first + math.sqrt(1 - alignment**2) * noise
    lengths = torch.rand(2, num_rows, 1, generator=generator, dtype=torch.float64) * 1.5 + 0.5
    image, text = (first * lengths[0]).to(dtype), (second * lengths[1]).to(dtype)
    return image.requires_grad_(), text.requires_grad_()


def number(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A learned scalar."""
    return torch.tensor(value, dtype=dtype, requires_grad=True)
