"""Sinkhorn-Knopp's passes over given logits on the CPU: csrc/cpu/sinkhorn.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, module, result_dtype, unavailable

__all__ = ["assignments", "balance", "column_logs", "unavailable"]


def column_logs(
    logits: Tensor,  # [N, K]
    inv_temperature: float,
    log_v: Tensor | None,  # [K]
) -> Tensor:
    """log sum_n u_n exp(x_nk / temperature), [K], with the u of log_v (u = 1 without)."""
    logits, dtype = logits.contiguous(), result_dtype(logits.dtype)
    log_v = None if log_v is None else log_v.to(dtype).contiguous()
    logs = torch.empty(logits.shape[1], dtype=dtype, device="cpu")
    module().sinkhorn_column_logs(
        logits, DTYPES[logits.dtype], *logits.shape, inv_temperature, log_v, logs, torch.get_num_threads()
    )
    return logs


def balance(
    logits: Tensor,  # [N, K]
    inv_temperature: float,
    iterations: int,
) -> Tensor:
    """log v [K] after all iterations, in one call."""
    logits = logits.contiguous()
    N, K = logits.shape
    log_v = torch.empty(K, dtype=result_dtype(logits.dtype), device="cpu")
    module().sinkhorn_balance(
        logits, DTYPES[logits.dtype], N, K, inv_temperature, iterations, log_v, torch.get_num_threads()
    )
    return log_v


def assignments(
    logits: Tensor,  # [N, K]
    inv_temperature: float,
    log_v: Tensor,  # [K]
) -> Tensor:
    """The softmax over k of x / temperature + log v, [N, K]."""
    logits, dtype = logits.contiguous(), result_dtype(logits.dtype)
    q = torch.empty(logits.shape, dtype=dtype, device="cpu")
    module().sinkhorn_assignments(
        logits, DTYPES[logits.dtype], *logits.shape, inv_temperature, log_v.to(dtype).contiguous(), q,
        torch.get_num_threads(),
    )  # fmt: skip
    return q
