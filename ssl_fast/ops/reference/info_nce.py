"""InfoNCE against a queue in plain torch, with the interface and the numerics of the fused kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.contract import widened


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def forward(
    q: Tensor,  # [B, D]
    k: Tensor,  # [B, D]
    queue: Tensor,  # [K, D]
    inv_temperature: float | Tensor,  # []
    normalize: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Per row: loss [B], and when wanted its derivatives dq [B, D], dk [B, D] and d/d(1/temperature) [B]."""
    with torch.autocast(q.device.type, enabled=False):
        unit_q, norm_q = _unit(q, normalize)
        unit_k, norm_k = _unit(k, normalize)
        rows = queue.to(unit_q.dtype)
        s = unit_q @ rows.T * inv_temperature  # [B, K]
        s_positive = (unit_q * unit_k).sum(1) * inv_temperature
        margin = s.logsumexp(1) - s_positive  # [B]
        loss = F.softplus(margin, threshold=60)
        if not with_grad:
            return loss, None, None, None
        # p_j = exp(s_j - log l); 1 - p_positive = sigmoid(margin), without the cancellation.
        p = (s - (loss + s_positive)[:, None]).exp_()
        missing = margin.sigmoid()[:, None]
        dq = (p @ rows - missing * unit_k) * inv_temperature
        dk = missing * unit_q * -inv_temperature
        dinv = (unit_q * dq).sum(1) / inv_temperature
        if not normalize:
            return loss, dq, dk, dinv
        return loss, _through_norm(dq, unit_q, norm_q), _through_norm(dk, unit_k, norm_k), dinv


def _unit(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """Rows at unit length [B, D] and their clamped norms [B, 1]."""
    x = widened(x)
    norm = x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return (x / norm, norm) if normalize else (x, norm)


def _through_norm(dz: Tensor, z: Tensor, norm: Tensor) -> Tensor:
    """The gradient with respect to the rows before normalisation. Below the clamp the norm is a constant."""
    along = (z * dz).sum(1, keepdim=True)
    return (dz - z * torch.where(norm > 1e-12, along, 0)) / norm
