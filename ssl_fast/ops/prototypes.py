r"""Cross-entropy between a teacher's and a student's assignments to prototypes: the engine of DINO, iBOT and SwAV.

    p_tk = softmax_k(<y_t, w'_k> / T' + b_tk)   teacher's view t of a sample: fixed, no gradient
    q_sk = softmax_k(<z_s, w_k> / T)            student's view s
    loss_n = - sum over the pairs (t, s) of views, sum_k p_tk log q_sk
    dz_s = sum_k g_sk w_k / T,  dw_k = sum_s g_sk z_s / T,  g_s = sum_t (q_s - p_t)

The logits are given, or the rows z, y and the prototypes w, w' are: then the kernels walk through the logits in panels
and no matrix of samples x prototypes is ever there.

Letters: S and T views of the student and the teacher, N samples, D embedding, K prototypes.

Reference: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", arXiv:2104.14294, Eq. 2 and
3; Zhou et al. 2022, arXiv:2111.07832, Eq. 2; Caron et al. 2020, arXiv:2006.09882, Eq. 2.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_fast.distributed import Group, global_sum, gradient_factor
from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.objective import Objective, Rows, wide

MAX_VIEWS = 64


def prototypes_reference(
    student: Tensor,  # [S, N, D], or logits [S, N, K]
    weight_student: Tensor | None,  # [K, D]
    teacher: Tensor,  # [T, N, D], or logits [T, N, K]
    weight_teacher: Tensor | None,  # [K, D]
    bias: Tensor | None,  # [T, K]
    *,
    student_temperature: float,
    teacher_temperature: float,
    skip_same: bool,
) -> Tensor:
    """The equation in plain torch, [N]: oracle and baseline. Differentiable any number of times."""
    if weight_student is not None and weight_teacher is not None:
        student, teacher = student @ weight_student.T, teacher @ weight_teacher.T
    targets = teacher.detach() / teacher_temperature
    targets = (targets if bias is None else targets + bias[:, None]).softmax(-1)
    logs = (student / student_temperature).log_softmax(-1)
    loss = -torch.einsum("tnk,snk->tsn", targets, logs)
    if skip_same:
        loss = loss * (1 - torch.eye(*loss.shape[:2], dtype=loss.dtype, device=loss.device))[:, :, None]
    return loss.sum((0, 1))


def _kernel(
    student: Tensor, weight_student: Tensor | None, teacher: Tensor, weight_teacher: Tensor | None, impl: str
) -> ModuleType:
    if weight_student is None or weight_teacher is None:
        return choose("prototype_logits", impl, student, teacher)
    return choose("prototypes", impl, student, weight_student, teacher, weight_teacher)


def _prototypes(
    student: Tensor,  # [S, N, D or K]
    weight_student: Tensor | None,  # [K, D]
    teacher: Tensor,  # [T, N, D or K]
    weight_teacher: Tensor | None,  # [K, D]
    bias: Tensor | None,  # [T, K]
    coef: Tensor | None,  # [N]
    inv_student: float,
    inv_teacher: float,
    skip_same: bool,
    impl: str,
    with_dweight: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """sum_n coef_n loss_n, or loss [N] without coef; with coef and when wanted dstudent and dweight_student."""
    student, teacher = student.detach().contiguous(), teacher.detach().contiguous()
    with_grad = with_grad and coef is not None
    inputs: tuple[Any, ...]
    if weight_student is None or weight_teacher is None:
        kernel = _kernel(student, None, teacher, None, impl)
        inputs = (student, teacher, bias, coef, inv_student, inv_teacher, skip_same, with_grad)
        (rows, dstudent), dweight = kernel.forward(*inputs), None
    else:
        weights = weight_student.detach().contiguous(), weight_teacher.detach().contiguous()
        kernel = _kernel(student, weights[0], teacher, weights[1], impl)
        inputs = (student, weights[0], teacher, weights[1], bias, coef, inv_student, inv_teacher, skip_same)
        rows, dstudent, dweight = kernel.forward(*inputs, with_grad, with_grad and with_dweight)
    return rows if coef is None else (rows * coef).sum(), dstudent, dweight


def _prototypes_at_once(*inputs: Any) -> tuple[Tensor | None, ...]:
    """The mean or sum over the samples [] and, when wanted, dstudent and dweight_student; this process alone."""
    *arguments, kernel, with_dweight, with_grad = inputs
    found: tuple[Tensor | None, ...] = kernel.objective(*arguments, with_dweight, with_grad)
    return found


def _prototypes_rows(*inputs: Any) -> tuple[Tensor, None]:
    """Loss [N]; nothing is left for the backward pass, which computes the logits again."""
    arguments: tuple[Any, ...] = (*inputs[:5], None, *inputs[5:], False)
    return _prototypes(*arguments)[0], None


def _prototypes_rows_backward(
    upstream: Tensor,  # [N], perhaps of stride 0
    kept: Tensor | None,
    *inputs: Any,
) -> tuple[Tensor | None, Tensor | None]:
    """dstudent and, when wanted, dweight_student."""
    arguments: tuple[Any, ...] = (*inputs[:5], upstream.contiguous(), *inputs[5:], True)
    return _prototypes(*arguments)[1:]


def _equation(
    student: Tensor,
    weight: Tensor | None,
    teacher: Tensor,
    weight_teacher: Tensor | None,
    bias: Tensor | None,
    coef: Tensor | None,
    inv_student: float,
    inv_teacher: float,
    skip_same: bool,
    *rest: Any,
) -> Tensor:
    """The reference in at least fp32."""
    student = contract.widened(student)
    weight, weight_teacher = (None if t is None else t.to(student.dtype) for t in (weight, weight_teacher))
    with torch.autocast(student.device.type, enabled=False):
        rows = prototypes_reference(
            student,
            weight,
            teacher.to(student.dtype),
            weight_teacher,
            bias,
            student_temperature=1 / inv_student,
            teacher_temperature=1 / inv_teacher,
            skip_same=skip_same,
        )
    return rows if coef is None else (rows * coef).sum()


def _equation_at_once(*inputs: Any) -> Tensor:
    *tensors, weight, inv_student, inv_teacher, skip_same, average, total, count, _, _ = inputs
    coef = _coefficients(tensors[0], weight, average, None if total < 0 else total) / count
    return _equation(*tensors, coef, inv_student, inv_teacher, skip_same)


def _equation_rows(*inputs: Any) -> Tensor:
    return _equation(*inputs[:5], None, *inputs[5:])


def _fake(student: Tensor, weight_student: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, with_dweight, with_grad = rest
    dstudent = wide(student, *student.shape) if with_grad else student.new_empty(0)
    if weight_student is None or not (with_grad and with_dweight):
        return wide(student), dstudent, student.new_empty(0)
    return wide(student), dstudent, wide(student, *weight_student.shape)


def _fake_rows(student: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return wide(student, student.shape[1]), student.new_empty(0)


_TENSORS = "Tensor student, Tensor? weight_student, Tensor teacher, Tensor? weight_teacher, Tensor? bias"
_OPTIONS = "float inv_student, float inv_teacher, bool skip_same, str impl, bool with_dweight"
_OBJECTIVE = Objective(
    "prototypes", f"{_TENSORS}, Tensor coef", _OPTIONS, _prototypes, _equation, num_gradients=2, fake=_fake
)
_AT_ONCE = Objective(
    "prototypes_at_once",
    f"{_TENSORS}, Tensor? weight",
    "float inv_student, float inv_teacher, bool skip_same, bool average, float total, int count, kernel, "
    "bool with_dweight",
    _prototypes_at_once,
    _equation_at_once,
    num_gradients=2,
    registered=False,
)
_ROWS = Rows(
    "prototypes_rows",
    _TENSORS,
    _OPTIONS,
    _prototypes_rows,
    _prototypes_rows_backward,
    _equation_rows,
    _fake_rows,
    num_gradients=2,
)


def _log_sums(
    terms: Tensor,  # [M, D]
    columns: Tensor,  # [R, D]
    bias: Tensor | None,  # [M]
    inv_temperature: float,
    impl: str,
) -> Tensor:
    terms, columns = terms.contiguous(), columns.contiguous()
    found: Tensor = choose("prototypes", impl, columns, terms).log_sums(terms, columns, bias, inv_temperature)
    return found


def _fake_log_sums(terms: Tensor, columns: Tensor, bias: Tensor | None, inv_temperature: float, impl: str) -> Tensor:
    return columns.new_empty(len(columns), dtype=result_dtype(terms, columns))


contract.register(
    "prototype_log_sums(Tensor terms, Tensor columns, Tensor? bias, float inv_temperature, str impl) -> Tensor",
    _log_sums,
    _fake_log_sums,
)


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where a tensor is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def log_sums(
    terms: Tensor,  # [M, D]
    columns: Tensor,  # [R, D]
    bias: Tensor | None,  # [M]
    inv_temperature: float,
    impl: str,
) -> Tensor:
    """log sum_m exp(<terms_m, columns_r> / temperature + bias_m), [R], without the [M, R] logits."""
    impl = "reference" if contract.under_functorch() else impl
    op = torch.ops.ssl_fast.prototype_log_sums if contract.under_tracing() else _log_sums
    found: Tensor = op(terms, columns, bias, inv_temperature, impl)
    return found


@dataclass(frozen=True)
class Pairs:
    """What is compared with what, and how it is added up.

    Attributes:
        student_temperature: positive number.
        teacher_temperature: positive number.
        skip_same: leave out the pairs of a student's and a teacher's view of the same number.
        group: process group over which "mean" and "sum" run, or None.
        grad_reduce: "mean" or "sum", as in `distributed.global_mean`.
        reduction: "mean", "sum" or "none".
        impl: name of the implementation, or "auto".
    """

    student_temperature: float
    teacher_temperature: float
    skip_same: bool
    group: Group
    grad_reduce: str
    reduction: str
    impl: str

    def check(self, student: Tensor, teacher: Tensor, *weights: Tensor | None) -> None:
        """Raises ValueError unless the views, prototypes and settings fit together."""
        _check_views("student", student)
        _check_views("teacher", teacher)
        if student.shape[1:] != teacher.shape[1:] or student.device != teacher.device:
            raise ValueError(
                f"teacher must have the samples, width and device of student, {list(student.shape[1:])} on "
                f"{student.device}, got {list(teacher.shape[1:])} on {teacher.device}"
            )
        _check_weights(student.shape[2], *weights)
        for name in ("student_temperature", "teacher_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        contract.check_reduction(self.reduction)
        gradient_factor(self.group, self.grad_reduce)
        check_impl("prototype_logits" if weights[0] is None else "prototypes", self.impl)
        if self.num_pairs(len(student), len(teacher)) == 0:
            raise ValueError(f"no pair of views is left of {len(student)} of the student and {len(teacher)} teacher's")

    def num_pairs(self, num_student: int, num_teacher: int) -> int:
        """How many pairs of views are compared."""
        same = min(num_student, num_teacher) if self.skip_same else 0
        return num_student * num_teacher - same


def _check_views(name: str, views: Tensor) -> None:
    if views.dim() != 3 or not views.is_floating_point() or len(views) > MAX_VIEWS:
        raise ValueError(
            f"{name} must be floating point of shape [views, N, D], at most {MAX_VIEWS} views, "
            f"got {views.dtype} of shape {list(views.shape)}"
        )


def _check_weights(dim: int, student: Tensor | None, teacher: Tensor | None) -> None:
    if (student is None) != (teacher is None):
        raise ValueError("weight_student and weight_teacher must both be given, or neither (logits)")
    if student is not None and teacher is not None:
        contract.check_rows("weight_student", student)
        contract.check_rows("weight_teacher", teacher, student, "weight_student")
        if student.shape[1] != dim:
            raise ValueError(f"weight_student must have shape [K, {dim}], got {list(student.shape)}")


def compare(
    student: Tensor,  # [S, N, D], or logits [S, N, K]
    weight_student: Tensor | None,  # [K, D]
    teacher: Tensor,  # [T, N, D], or logits [T, N, K]
    weight_teacher: Tensor | None,  # [K, D]
    bias: Tensor | None,  # [T, K]
    weight: Tensor | None,  # [N]
    pairs: Pairs,
    total: float | None = None,
) -> Tensor:
    """The loss of each sample, a mean over its pairs of views, reduced over the samples of all ranks.

    The number that the sum is divided by is known before the kernels run, so that gradients come with the value.
    `total` is this rank's part of it, where it is not the sum of the weights.
    """
    count = pairs.num_pairs(student.shape[0], teacher.shape[0])
    inv_student, inv_teacher = 1 / pairs.student_temperature, 1 / pairs.teacher_temperature
    with_dweight = contract.wants_gradient(weight_student)
    tensors = (student, weight_student, teacher.detach(), None if weight_teacher is None else weight_teacher.detach())
    average = pairs.reduction == "mean"
    if pairs.reduction != "none" and pairs.group is None and student.numel() and contract.plainly():
        kernel = _kernel(*tensors, pairs.impl)
        if hasattr(kernel, "objective"):
            weight = None if weight is None else weight.detach()
            numbers = (
                inv_student,
                inv_teacher,
                pairs.skip_same,
                average,
                -1.0 if total is None else float(total),
                count,
            )
            return _AT_ONCE((*tensors, bias, weight), (*numbers, kernel, with_dweight))
    coef = None
    if pairs.reduction != "none":
        coef = _coefficients(student, weight, average, total, pairs.group) / count
    options = (inv_student, inv_teacher, pairs.skip_same, pairs.impl, with_dweight)
    value = _ROWS((*tensors, bias), options) if coef is None else _OBJECTIVE((*tensors, bias, coef), options)
    if coef is None:
        return value / count if weight is None else value * (weight.detach() / count)
    return global_sum(value[None], pairs.group, pairs.grad_reduce)


@torch.no_grad()
def _coefficients(
    student: Tensor, weight: Tensor | None, average: bool, total: float | None, group: Group = None
) -> Tensor:
    """What each sample's loss is multiplied by, [N]."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    num_samples = student.shape[1]
    coef = student.new_ones(num_samples, dtype=dtype) if weight is None else weight.detach().to(dtype)
    if not average:
        return coef
    if group is None and weight is None:
        return coef / max(num_samples if total is None else total, 1)
    sums = coef.sum() if total is None else coef.new_tensor(float(total))
    if group is not None:
        dist.all_reduce(sums, group=group)
    return coef / torch.where(sums == 0, 1, sums)
