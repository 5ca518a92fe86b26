"""BYOL's distance in plain torch with its gradient in closed form."""

import torch
from torch import Tensor

from ssl_fast.ops.contract import widened


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def forward(
    p: Tensor,  # [N, D]
    z: Tensor,  # [N, D]
    normalize: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Per row: the distance [N] and, when wanted, its gradient dp [N, D]; at least fp32."""
    with torch.autocast(p.device.type, enabled=False):
        p = widened(p).contiguous()
        z = z.to(p.dtype).contiguous()
        if not normalize:
            apart = p - z
            return apart.square().sum(1), apart.mul_(2) if with_grad else None
        norm = torch.linalg.vector_norm(p, dim=1, keepdim=True).clamp_min_(1e-12)
        unit = p / norm
        apart = unit - z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min_(1e-12)
        distance = apart.square().sum(1)
        if not with_grad:
            return distance, None
        # The part along p goes with the norm; below the clamp the norm is a constant. apart keeps its digits where
        # p and z align, and 1 - cos does not.
        along = torch.where(norm > 1e-12, (unit * apart).sum(1, keepdim=True), 0)
        return distance, apart.addcmul_(unit, along, value=-1).mul_(2 / norm)
