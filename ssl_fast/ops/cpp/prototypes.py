"""Cross-entropy between assignments to prototypes on the CPU: csrc/cpu/prototypes.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, NO_GRADIENTS, beside, module, result_dtype, scalar_beside, unavailable

__all__ = ["forward", "log_sums", "objective", "unavailable"]


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
    dtype = torch.promote_types(student.dtype, torch.float32)
    (S, N, D), K = student.shape, len(weight_student)
    bias, coef = (None if t is None else t.to(dtype).contiguous() for t in (bias, coef))
    loss = torch.empty(N, dtype=dtype, device="cpu")
    dstudent = torch.empty(student.shape, dtype=dtype, device="cpu") if with_grad else None
    dweight = torch.empty(K, D, dtype=dtype, device="cpu") if with_grad and with_dweight else None
    matrices = (student, weight_student, teacher, weight_teacher)
    module().prototypes_forward(
        *(part for t in matrices for part in (t, DTYPES[t.dtype])), S, len(teacher), N, K, D, bias, coef, inv_student,
        inv_teacher, skip_same, loss, dstudent, dweight, dtype == torch.float64, torch.get_num_threads(),
    )  # fmt: skip
    return loss, dstudent, dweight


def objective(
    student: Tensor,  # [S, N, D]
    weight_student: Tensor,  # [K, D]
    teacher: Tensor,  # [T, N, D]
    weight_teacher: Tensor,  # [K, D]
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
) -> tuple[Tensor | None, ...]:
    """Mean or sum over the samples [] and, when wanted, dstudent and dweight_student; all in one call."""
    dtype = result_dtype(student.dtype)
    S, N, D = student.shape
    student, teacher = student.contiguous(), teacher.contiguous()
    weight_student, weight_teacher = weight_student.contiguous(), weight_teacher.contiguous()
    bias, weight = (None if t is None else t.to(dtype).contiguous() for t in (bias, weight))
    value = scalar_beside(student)
    grads = beside(dtype, student, weight_student if with_dweight else None) if with_grad else NO_GRADIENTS[:2]
    module().prototypes(
        student, DTYPES[student.dtype], weight_student, DTYPES[weight_student.dtype], teacher, DTYPES[teacher.dtype],
        weight_teacher, DTYPES[weight_teacher.dtype], S, teacher.shape[0], N, weight_student.shape[0], D, bias, weight,
        average, total, count, inv_student, inv_teacher, skip_same, value, *grads, dtype == torch.float64,
        torch.get_num_threads(),
    )  # fmt: skip
    return value, *grads


def log_sums(
    terms: Tensor,  # [M, D]
    columns: Tensor,  # [R, D]
    bias: Tensor | None,  # [M]
    inv_temperature: float,
) -> Tensor:
    """log sum_m exp(<terms_m, columns_r> / temperature + bias_m), [R]."""
    dtype = torch.promote_types(torch.promote_types(terms.dtype, columns.dtype), torch.float32)
    bias = None if bias is None else bias.to(dtype).contiguous()
    logs = torch.empty(len(columns), dtype=dtype, device="cpu")
    module().prototypes_log_sums(
        terms, DTYPES[terms.dtype], columns, DTYPES[columns.dtype], bias, len(terms), len(columns), columns.shape[1],
        inv_temperature, logs, dtype == torch.float64, torch.get_num_threads(),
    )  # fmt: skip
    return logs
