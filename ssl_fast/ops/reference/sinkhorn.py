"""Sinkhorn-Knopp's passes over given logits in plain torch, a chunk of rows at a time."""

import torch
from torch import Tensor

_CHUNK = 1 << 22  # logits whose exponentials are alive at a time


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def column_logs(
    logits: Tensor,  # [N, K]
    inv_temperature: float,
    log_v: Tensor | None,  # [K]
) -> Tensor:
    """log sum_n u_n exp(x_nk / temperature), [K], with the u of log_v (u = 1 without)."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    total = logits.new_zeros(logits.shape[1], dtype=dtype)
    if log_v is not None:
        for chunk in _chunks(logits):
            total = total + _softmax(chunk, inv_temperature, log_v).sum(0)  # u_n E_nk v_k
        return total.log_().sub_(log_v)
    if len(logits) == 0:
        return total.log_()
    highest = logits.amax(0).to(dtype)
    for chunk in _chunks(logits):
        total = total + chunk.to(dtype).sub(highest).mul_(inv_temperature).exp_().sum(0)
    return total.log_().add_(highest, alpha=inv_temperature)


def assignments(
    logits: Tensor,  # [N, K]
    inv_temperature: float,
    log_v: Tensor,  # [K]
) -> Tensor:
    """The softmax over k of x / temperature + log v, [N, K]."""
    q = torch.empty_like(logits, dtype=log_v.dtype)
    for chunk, out in zip(_chunks(logits), _chunks(q), strict=True):
        out.copy_(_softmax(chunk, inv_temperature, log_v))
    return q


def _chunks(logits: Tensor) -> tuple[Tensor, ...]:
    return torch.split(logits, max(1, _CHUNK // max(1, logits.shape[1])))


def _softmax(
    logits: Tensor,  # [n, K]
    inv_temperature: float,
    bias: Tensor,  # [K]
) -> Tensor:
    return torch.add(bias, logits.to(bias.dtype), alpha=inv_temperature).softmax(1)
