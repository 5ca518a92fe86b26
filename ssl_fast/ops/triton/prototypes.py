"""Cross-entropy between assignments to prototypes on a GPU: cuBLAS for the products, Triton between them.

A panel of samples at a time, all their views: logits of a fixed number, their loss and gradient by prototype_logits,
then the products with the prototypes and the rows. Nothing is multiplied twice, 2 (T + S) N K D FLOP forward and
4 S N K D for the gradients. cuBLAS is faster than a product in Triton on these shapes by what siglip-kernel and
Liger-Kernel report; no time was measured here. Rows that are bf16 are multiplied as such with fp32 results, all others
in fp32, as `torch.set_float32_matmul_precision` says: the gradient of a logit may be too small for fp16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import prototype_logits, tiles
from .tiles import unavailable as unavailable

_PANEL = 1 << 26  # logits that are alive at a time, in fp32


def forward(
    student: Tensor,  # [S, N, D]
    weight_student: Tensor,  # [K, D]
    teacher: Tensor,  # [T, N, D]
    weight_teacher: Tensor,  # [K, D]
    bias: Tensor | None,  # [T, K]
    coef: Tensor | None,  # [N]
    inv_student: float,
    inv_teacher: float,
    skip_same: bool,
    with_grad: bool,
    with_dweight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss of each sample [N] and, when wanted, the gradients of sum_n coef_n loss_n: dstudent, dweight_student."""
    dtype = _product_dtype(student)
    z, y, w, w_teacher = (t.to(dtype) for t in (student, teacher, weight_student, weight_teacher))
    (S, N, D), K = student.shape, len(weight_student)
    loss = torch.empty(N, dtype=torch.float32, device=student.device)
    dstudent = torch.empty(student.shape, dtype=torch.float32, device=student.device) if with_grad else None
    dweight = torch.zeros(K, D, dtype=torch.float32, device=student.device) if with_grad and with_dweight else None
    step = max(1, _PANEL // max(1, (S + len(teacher)) * K))
    with torch.autocast(student.device.type, enabled=False):
        for begin in range(0, N, step):
            part = slice(begin, begin + step)
            rows = z[:, part]
            logits = _product(rows, w.T), _product(y[:, part], w_teacher.T)
            some = None if coef is None else coef[part]
            loss[part], g = prototype_logits.forward(
                *logits, bias, some, inv_student, inv_teacher, skip_same, with_grad, grad_dtype=_gradient_dtype(dtype)
            )
            if g is not None and dstudent is not None:
                dstudent[:, part] = _product(g, w)
                if dweight is not None:
                    dweight += _product(g.flatten(0, 1).T, rows.flatten(0, 1))
    return loss, dstudent, dweight


def log_sums(
    terms: Tensor,  # [M, D]
    columns: Tensor,  # [R, D]
    bias: Tensor | None,  # [M]
    inv_temperature: float,
) -> Tensor:
    """log sum_m exp(<terms_m, columns_r> / temperature + bias_m), [R]."""
    dtype = _product_dtype(columns)
    bias = None if bias is None else bias.float()[None].contiguous()
    found = torch.empty(len(columns), dtype=torch.float32, device=columns.device)
    step = max(1, _PANEL // max(1, len(terms)))
    with torch.autocast(columns.device.type, enabled=False):
        for begin in range(0, len(columns), step):
            logits = _product(columns[begin : begin + step].to(dtype), terms.to(dtype).T)
            largest, sums = prototype_logits.normalisers(logits[None], bias, inv_temperature)
            found[begin : begin + step] = (largest + sums.log())[0]
    return found


def _product_dtype(rows: Tensor) -> torch.dtype:
    return torch.bfloat16 if rows.dtype == torch.bfloat16 else torch.float32


def _gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """The interpreter's own rounding to bfloat16 is wrong: there the gradient of the logits stays fp32."""
    return torch.float32 if tiles.interpreted() else dtype


def _product(
    left: Tensor,  # [..., m, k]
    right: Tensor,  # [k, n]
) -> Tensor:
    """left @ right in fp32, whatever the dtype of the factors."""
    if left.dtype == right.dtype == torch.float32:
        return left @ right
    if left.device.type == "cuda":
        flat = torch.mm(left.flatten(0, -2), right, out_dtype=torch.float32)
        return flat.view(*left.shape[:-1], right.shape[1])
    return left.float() @ right.float()
