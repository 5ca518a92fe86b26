"""Cross-entropy between assignments to prototypes in plain torch, with the interface of the fused kernels."""

import torch
from torch import Tensor

from ssl_fast.ops.contract import widened
from ssl_fast.ops.reference import prototype_logits


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


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
    with torch.autocast(student.device.type, enabled=False):
        z = widened(student)
        y, w, w_teacher = (t.to(z.dtype) for t in (teacher, weight_student, weight_teacher))
        inputs = (z @ w.T, y @ w_teacher.T, bias, coef, inv_student, inv_teacher, skip_same, with_grad)
        rows, g = prototype_logits.forward(*inputs)
        if g is None:
            return rows, None, None
        return rows, g @ w, g.flatten(0, 1).T @ z.flatten(0, 1) if with_dweight else None


def log_sums(
    terms: Tensor,  # [M, D]
    columns: Tensor,  # [R, D]
    bias: Tensor | None,  # [M]
    inv_temperature: float,
) -> Tensor:
    """log sum_m exp(<terms_m, columns_r> / temperature + bias_m), [R]."""
    with torch.autocast(columns.device.type, enabled=False):
        dtype = torch.promote_types(widened(terms).dtype, columns.dtype)
        logits = columns.to(dtype) @ terms.to(dtype).T * inv_temperature  # [R, M]
        return (logits if bias is None else logits.add_(bias.to(dtype))).logsumexp(1)
