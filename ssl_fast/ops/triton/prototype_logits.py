"""Cross-entropy between assignments whose logits are given, in Triton: one pass for the normalisers, one for the rest.

Bytes an element of the student's logits (fp32): 4 + 4 read, 4 written, and the teacher's read once and then once for
every view of the student. No N x K matrix is made beside the gradient. Nothing is read back by the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import tiles
from .tiles import unavailable as unavailable


def forward(
    student: Tensor,  # [S, N, K]
    teacher: Tensor,  # [T, N, K]
    bias: Tensor | None,  # [T, K]
    coef: Tensor | None,  # [N]
    inv_student: float,
    inv_teacher: float,
    skip_same: bool,
    with_grad: bool,
    grad_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor | None]:
    """Loss of each sample [N] and, when wanted, d sum_n coef_n loss_n / dstudent [S, N, K]."""
    from .prototype_kernels import loss_kernel

    (S, N, K), T = student.shape, len(teacher)
    loss = torch.empty(S, N, dtype=torch.float32, device=student.device)
    gradient = torch.empty(student.shape, dtype=grad_dtype, device=student.device) if with_grad else None
    if N == 0 or K == 0:
        return loss.sum(0), gradient
    bias = None if bias is None else bias.float().contiguous()
    normalisers_student = normalisers(student, None, inv_student)
    normalisers_teacher = normalisers(teacher, bias, inv_teacher)
    with tiles.on_device(student):
        loss_kernel[(N, S)](
            student,
            teacher,
            bias,
            *normalisers_student,
            *normalisers_teacher,
            coef,
            loss,
            gradient,
            N,
            K,
            inv_student,
            inv_teacher,
            T=T,
            BLOCK=block(K),
            SKIP_SAME=skip_same,
            HAS_BIAS=bias is not None,
            WITH_GRAD=with_grad,
            **tiles.ROW_OPTIONS | {"num_warps": 8},  # with four it spills
        )
    return loss.sum(0), gradient


def normalisers(
    logits: Tensor,  # [V, N, K]
    bias: Tensor | None,  # [V, K] fp32
    inv_temperature: float,
) -> tuple[Tensor, Tensor]:
    """The highest of logits / temperature + bias, and the sum of the exponentials relative to it; each [V, N]."""
    from .prototype_kernels import normaliser_kernel

    V, N, K = logits.shape
    largest = torch.zeros(V, N, dtype=torch.float32, device=logits.device)
    sums = torch.zeros_like(largest)
    if sums.numel() > 0 and K > 0:
        with tiles.on_device(logits):
            normaliser_kernel[(V * N,)](
                logits,
                bias,
                largest,
                sums,
                N,
                K,
                inv_temperature,
                BLOCK=block(K),
                HAS_BIAS=bias is not None,
                **tiles.ROW_OPTIONS,
            )
    return largest, sums


def block(num_prototypes: int) -> int:
    """Logits that a program holds at a time."""
    return int(min(2048, max(16, 1 << (num_prototypes - 1).bit_length())))
