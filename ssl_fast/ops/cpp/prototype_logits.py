"""Cross-entropy between assignments whose logits are given, on the CPU: csrc/cpu/prototype_logits.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, module, result_dtype, scalar_beside, unavailable

__all__ = ["forward", "objective", "token_weights", "unavailable"]


def forward(
    student: Tensor,  # [S, N, K]
    teacher: Tensor,  # [T, N, K]
    bias: Tensor | None,  # [T, K]
    coef: Tensor | None,  # [N]
    inv_student: float,
    inv_teacher: float,
    skip_same: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Loss of each sample [N] and, when wanted, d sum_n coef_n loss_n / dstudent [S, N, K]."""
    dtype = result_dtype(student.dtype)
    S, N, K = student.shape
    student, teacher = student.contiguous(), teacher.contiguous()
    bias, coef = (None if t is None else t.to(dtype).contiguous() for t in (bias, coef))
    loss = torch.empty(N, dtype=dtype, device="cpu")
    dstudent = torch.empty_like(student, dtype=dtype) if with_grad else None
    module().prototype_logits_forward(
        student, DTYPES[student.dtype], teacher, DTYPES[teacher.dtype], S, teacher.shape[0], N, K, bias, coef,
        inv_student, inv_teacher, skip_same, loss, dstudent, dtype == torch.float64, torch.get_num_threads(),
    )  # fmt: skip
    return loss, dstudent


def objective(
    student: Tensor,  # [S, N, K]
    weight_student: None,
    teacher: Tensor,  # [T, N, K]
    weight_teacher: None,
    bias: Tensor | None,  # [T, K]
    weight: Tensor | None,  # [N]
    inv_student: float,
    inv_teacher: float,
    skip_same: bool,
    average: bool,
    total: float,
    count: int,
    with_dweight: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, None]:
    """Mean or sum over the samples [] and, when wanted, dstudent [S, N, K]; all in one call."""
    dtype = result_dtype(student.dtype)
    S, N, K = student.shape
    student, teacher = student.contiguous(), teacher.contiguous()
    bias, weight = (None if t is None else t.to(dtype).contiguous() for t in (bias, weight))
    value = scalar_beside(student)
    dstudent = torch.empty_like(student, dtype=dtype) if with_grad else None
    module().prototype_logits(
        student, DTYPES[student.dtype], teacher, DTYPES[teacher.dtype], S, teacher.shape[0], N, K, bias, weight,
        average, total, count, inv_student, inv_teacher, skip_same, value, dstudent, dtype == torch.float64,
        torch.get_num_threads(),
    )  # fmt: skip
    return value, dstudent, None


def token_weights(
    masks: Tensor,  # [B, ...] bool
    num_tokens: int,
    dtype: torch.dtype,
) -> tuple[Tensor, int]:
    """1 / (masked tokens of its image) for each masked token, [M]; and how many there are, which should be M."""
    masks = masks.contiguous()
    B = masks.shape[0]
    weights = torch.empty(num_tokens, dtype=dtype, device="cpu")
    in_float64 = dtype == torch.float64
    return weights, module().token_weights(masks, B, masks.numel() // max(B, 1), num_tokens, weights, in_float64)
