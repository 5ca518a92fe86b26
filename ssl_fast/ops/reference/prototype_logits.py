"""Cross-entropy between assignments whose logits are given, in plain torch, with the kernels' interface."""

import torch
from torch import Tensor

from ssl_fast.ops.contract import widened


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


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
    with torch.autocast(student.device.type, enabled=False):
        student = widened(student)
        targets = teacher.to(student.dtype) * inv_teacher
        targets = (targets if bias is None else targets.add_(bias.to(targets.dtype)[:, None])).softmax(-1)  # [T, N, K]
        rows, grads = student.new_zeros(student.shape[1]), []
        for s, logits in enumerate(student):
            chosen = [t for t in range(len(targets)) if not (skip_same and s == t)]
            target = targets[chosen].sum(0)  # [N, K]
            logs = (logits * inv_student).log_softmax(-1)
            rows -= (target * logs).sum(-1)
            if with_grad and coef is not None:
                grads.append(logs.exp_().mul_(len(chosen)).sub_(target).mul_(coef[:, None] * inv_student))
    return rows, torch.stack(grads) if with_grad else None
