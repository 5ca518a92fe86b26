"""Sinkhorn-Knopp's passes over given logits in Triton: no matrix of their size is written but the result.

Bytes an element and iteration: the logits twice (normalisers of the rows, then sums over the columns), the second time
from the L2 cache, for both passes take a chunk of rows at a time; plain torch moves four times as much.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import tiles
from .prototype_logits import block, normalisers

_CHUNK = 1 << 23  # logits that both passes take before the next: 32 MiB in fp32
_STRIP, _BLOCK_R, _BLOCK_C = 128, 16, 128  # rows of a program, and its tile


def unavailable(*tensors: Tensor) -> str | None:
    """Why the kernels cannot take these logits; None if they can. Rows are walked a block at a time, of any length."""
    return tiles.unavailable(*(tensor[:, :1] for tensor in tensors), products=False)


def column_logs(
    logits: Tensor,  # [N, K]
    inv_temperature: float,
    log_v: Tensor | None,  # [K]
) -> Tensor:
    """log sum_n u_n exp(x_nk / temperature), [K], with the u of log_v (u = 1 without)."""
    from .sinkhorn_kernels import column_kernel

    N, K = logits.shape
    parts = torch.empty(2, -(-N // _STRIP), K, dtype=torch.float32, device=logits.device)
    if parts.numel() == 0:
        return parts.new_full((K,), -torch.inf)
    with tiles.on_device(logits):
        for begin, chunk in _chunks(logits):
            scaled = (None, None, None) if log_v is None else (log_v, *_normalisers(chunk, inv_temperature, log_v))
            strips = -(-len(chunk) // _STRIP)
            here = slice(begin // _STRIP, begin // _STRIP + strips)
            column_kernel[(-(-K // _BLOCK_C), strips)](
                chunk,
                *scaled,
                parts[0, here],
                parts[1, here],
                len(chunk),
                K,
                inv_temperature,
                STRIP=_STRIP,
                BLOCK_R=_BLOCK_R,
                BLOCK_C=_BLOCK_C,
                SCALED=log_v is not None,
                **tiles.ROW_OPTIONS,
            )
    highest = parts[0].amax(0)
    logs = highest + (parts[1] * (parts[0] - highest).exp_()).sum(0).log_()
    return logs if log_v is None else logs - log_v


def assignments(
    logits: Tensor,  # [N, K]
    inv_temperature: float,
    log_v: Tensor,  # [K]
) -> Tensor:
    """The softmax over k of x / temperature + log v, [N, K]."""
    from .sinkhorn_kernels import assignment_kernel

    K = logits.shape[1]
    q = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    with tiles.on_device(logits):
        for begin, chunk in _chunks(logits) if q.numel() else ():
            assignment_kernel[(len(chunk), -(-K // block(K)))](
                chunk,
                log_v,
                *_normalisers(chunk, inv_temperature, log_v),
                q[begin:],
                K,
                inv_temperature,
                BLOCK=block(K),
                **tiles.ROW_OPTIONS,
            )
    return q


def _chunks(logits: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Whole strips of rows, and where they begin."""
    rows = max(1, _CHUNK // logits.shape[1] // _STRIP) * _STRIP
    logits = logits.contiguous()
    for begin in range(0, len(logits), rows):
        yield begin, logits[begin : begin + rows]


def _normalisers(chunk: Tensor, inv_temperature: float, log_v: Tensor) -> tuple[Tensor, Tensor]:
    """Each [n]."""
    largest, sums = normalisers(chunk[None], log_v[None], inv_temperature)
    return largest[0], sums[0]
