r"""DINO: a student's views take over the teacher's assignments to K prototypes; the head's last layer is fused in.

    p_t = softmax((y_t w'^T - c) / T'),  q_s = softmax(z_s w^T / T)
    loss_n = mean over the pairs t != s of views of  - sum_k p_tk log q_sk
with a centre c (a moving average of the teacher's logits), or with p_t balanced over the batch by Sinkhorn-Knopp.

Letters: S and T views of student and teacher, N samples, D embedding, K prototypes.

Reference: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", arXiv:2104.14294, Eq. 3 and
4, Alg. 1; Sinkhorn instead of the centre: Oquab et al. 2023, "DINOv2", arXiv:2304.07193, Sec. 4.
"""

from __future__ import annotations  # torch 2.6 cannot trace the making of a function with `Tensor | None` in it

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.distributed import Group
from ssl_fast.ops import contract
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.prototypes import Pairs, compare, log_sums, prototypes_reference, result_dtype
from ssl_fast.ops.sinkhorn import balance, balance_logits, check_settings

Center = Tensor | str | None


def dino_reference(
    student: Tensor,  # [S, N, D], or logits [S, N, K]
    teacher: Tensor,  # [T, N, D], or logits [T, N, K]
    weight_student: Tensor | None = None,  # [K, D]
    weight_teacher: Tensor | None = None,  # [K, D]
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    center: Tensor | None = None,  # [K]
) -> Tensor:
    """The equation in plain torch, in the dtype of the student: oracle and baseline."""
    bias = None if center is None else (center / -teacher_temperature).expand(len(teacher), -1)
    loss = prototypes_reference(
        student, weight_student, teacher, weight_teacher, bias,
        student_temperature=student_temperature, teacher_temperature=teacher_temperature, skip_same=True,
    )  # fmt: skip
    num_pairs = len(student) * len(teacher) - min(len(student), len(teacher))
    return loss.mean() / num_pairs


def dino_loss(
    student: Tensor,  # [S, N, D], or logits [S, N, K]
    teacher: Tensor,  # [T, N, D], or logits [T, N, K]
    weight_student: Tensor | None = None,  # [K, D]
    weight_teacher: Tensor | None = None,  # [K, D]
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    center: Center = None,  # [K], or "sinkhorn"
    sinkhorn_iterations: int = 3,
    normalize_prototypes: bool = False,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """DINO's loss over all pairs of a teacher's and a student's view, but for those of the same view.

    Give the logits; or give the rows that go into the last layer and that layer's weights: then the [N, K] logits are
    never there as a whole, and memory is O(N D + K D). Accumulation, loss and softmax are at least fp32, under
    autocast too; gradients come in the dtype of their input. The teacher's side gets no gradient.

    Args:
        student: views of the student, global views first, [S, N, D] (or logits).
        teacher: views of the teacher, [T, N, D] (or logits); view t is of the same crop as the student's view t.
        weight_student: the student's prototypes (the head's last layer), [K, D]; where it needs no gradient (a frozen
            layer) none is computed. None: the rows are logits.
        weight_teacher: the teacher's prototypes, [K, D]; None with the other.
        student_temperature: positive number.
        teacher_temperature: positive number.
        center: taken off the teacher's logits, [K] (see `DINOCenter`); "sinkhorn": the assignments of all rows of the
            teacher, over all ranks, are balanced instead; None: neither.
        sinkhorn_iterations: at least 1; see `sinkhorn`.
        normalize_prototypes: scale the prototypes to unit length first (weight-norm of gain 1).
        weight: weights >= 0 of the samples, [N], constants; "mean" is then the weighted mean.
        group: process group over which "mean" and "sum" run and Sinkhorn balances; local batches may differ in size.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP), "sum" when they are added.
        reduction: "mean" or "sum" over the samples (of all ranks), or "none": [N], times the weights. A sample's loss
            is the mean over its pairs of views.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here.

    Example:
        >>> student, teacher = torch.zeros(2, 3, 4), torch.eye(4)[:3].expand(2, 3, 4)
        >>> round(dino_loss(student, teacher).item(), 4)  # log 4: a student that knows nothing
        1.3863

    Reference: Caron et al. 2021, arXiv:2104.14294, Eq. 3; Oquab et al. 2023, arXiv:2304.07193, Sec. 4.
    """
    pairs = Pairs(student_temperature, teacher_temperature, True, group, grad_reduce, reduction, impl)
    pairs.check(student, teacher, weight_student, weight_teacher)
    contract.check_weight(weight, student, 1)
    weight_student, weight_teacher = unit_prototypes(weight_student, weight_teacher, normalize_prototypes)
    bias = None
    if center is not None:
        rows = teacher.detach().flatten(0, 1)
        bias = teacher_bias(rows, weight_teacher, center, teacher_temperature, sinkhorn_iterations, group, impl)
        bias = bias.expand(len(teacher), -1)
    return compare(student, weight_student, teacher, weight_teacher, bias, weight, pairs)


def unit_prototypes(
    weight_student: Tensor | None,  # [K, D]
    weight_teacher: Tensor | None,  # [K, D]
    normalize: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Both at unit length, where that is asked for."""
    if not normalize or weight_student is None or weight_teacher is None:
        return weight_student, weight_teacher
    unit = F.normalize(contract.widened(weight_student), dim=1, eps=1e-12)
    if weight_teacher is weight_student:
        return unit, unit
    return unit, F.normalize(contract.widened(weight_teacher.detach()), dim=1, eps=1e-12)


# So many of the teacher's logits (32 MB) are kept while they are balanced; of more, each iteration multiplies anew.
STORED_LOGITS = 1 << 23


def teacher_bias(
    teacher: Tensor,  # [M, D], or logits [M, K], constants
    weight_teacher: Tensor | None,  # [K, D]
    center: Tensor | str,  # [K], or "sinkhorn"
    temperature: float,
    iterations: int,
    group: Group,
    impl: str,
) -> Tensor:
    """What is added to the teacher's logits / temperature before the softmax, [K], a constant."""
    num_prototypes = teacher.shape[1] if weight_teacher is None else len(weight_teacher)
    if isinstance(center, Tensor):
        if center.shape != (num_prototypes,) or not center.is_floating_point():
            raise ValueError(
                f"center must be floating point of shape [{num_prototypes}], one number per prototype, "
                f"got {center.dtype} of shape {list(center.shape)}"
            )
        return contract.widened(center.detach()) / -temperature
    if center != "sinkhorn":
        raise ValueError(f"center must be a tensor, 'sinkhorn' or None, got {center!r}")
    check_settings(temperature, iterations)
    if weight_teacher is not None and len(teacher) * num_prototypes <= STORED_LOGITS:
        dtype = result_dtype(teacher, weight_teacher)
        with torch.autocast(teacher.device.type, enabled=False):
            teacher, weight_teacher = teacher.to(dtype) @ weight_teacher.detach().to(dtype).T, None
    if weight_teacher is None:
        return balance_logits(teacher, temperature, iterations, group, impl)
    prototypes = weight_teacher.detach()

    def column_logs(log_v: Tensor | None) -> Tensor:
        log_u = None if log_v is None else -log_sums(prototypes, teacher, log_v, 1 / temperature, impl)
        return log_sums(teacher, prototypes, log_u, 1 / temperature, impl)

    return balance(column_logs, iterations, group)


class DINOLoss(LossModule):
    """`dino_loss` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        sinkhorn_iterations: int = 3,
        normalize_prototypes: bool = False,
        group: Group = None,
        grad_reduce: str = "mean",
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__(
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            sinkhorn_iterations=sinkhorn_iterations,
            normalize_prototypes=normalize_prototypes,
            group=group,
            grad_reduce=grad_reduce,
            reduction=reduction,
            impl=impl,
        )

    def forward(
        self,
        student: Tensor,  # [S, N, D], or logits [S, N, K]
        teacher: Tensor,  # [T, N, D], or logits [T, N, K]
        weight_student: Tensor | None = None,  # [K, D]
        weight_teacher: Tensor | None = None,  # [K, D]
        center: Center = None,  # [K], or "sinkhorn"
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`dino_loss(...)` with the module's settings."""
        return dino_loss(
            student, teacher, weight_student, weight_teacher, center=center, weight=weight, **self.settings
        )


class DINOCenter(nn.Module):
    """The moving average of the teacher's logits, [K]; saved in the state_dict. Update it after the step.

    Attributes:
        value: [K], what `dino_loss(center=...)` takes.

    Reference: Caron et al. 2021, arXiv:2104.14294, Eq. 4.
    """

    value: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        """
        Args:
            num_prototypes: K.
            momentum: what stays of the old centre, in [0, 1].

        Raises:
            ValueError: a size or a momentum out of range.
        """
        super().__init__()
        if num_prototypes < 1 or not 0 <= momentum <= 1:
            raise ValueError(
                "num_prototypes must be positive and momentum in [0, 1], "
                f"got num_prototypes={num_prototypes} and momentum={momentum}"
            )
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(num_prototypes))

    @torch.no_grad()
    def update_(
        self,
        teacher: Tensor,  # [..., D], or logits [..., K]
        weight_teacher: Tensor | None = None,  # [K, D]
        group: Group = None,
    ) -> None:
        """Takes in the mean of the batch's logits. With prototypes given it is their product with the mean row.

        Args:
            teacher: rows or logits of the teacher, any number of leading dimensions.
            weight_teacher: the prototypes as the loss saw them; None: `teacher` holds logits.
            group: process group over whose rows the mean runs: one message of D (or K) numbers. None: this process.

        Raises:
            ValueError: the width is not that of the prototypes, or their number is not the centre's.
        """
        width = len(self.value) if weight_teacher is None else weight_teacher.shape[1]
        if teacher.shape[-1] != width or (weight_teacher is not None and len(weight_teacher) != len(self.value)):
            raise ValueError(
                f"teacher must have shape [..., {width}] and weight_teacher [{len(self.value)}, {width}] (or None), "
                f"got {list(teacher.shape)} and {None if weight_teacher is None else list(weight_teacher.shape)}"
            )
        rows = contract.widened(teacher).reshape(-1, width)
        sums = torch.cat((rows.sum(0), rows.new_tensor([float(len(rows))])))
        if group is not None:
            dist.all_reduce(sums, group=group)
        mean = sums[:-1] / sums[-1].clamp_min(1)
        with torch.autocast(mean.device.type, enabled=False):
            mean = mean if weight_teacher is None else weight_teacher.to(mean.dtype) @ mean
        moved = self.value.lerp(mean.to(self.value.dtype), 1 - self.momentum)
        self.value.copy_(torch.where(sums[-1] == 0, self.value, moved))

    def forward(self) -> Tensor:
        """The centre [K]."""
        return self.value

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"num_prototypes={len(self.value)}, momentum={self.momentum}"
