r"""iBOT: the student's masked patch tokens take over the teacher's assignments of the same, unmasked patches.

    loss = 1/B sum over the images, 1/M_b sum over the M_b masked tokens m of image b,  - sum_k p_mk log q_mk
with p (teacher, centred or balanced by Sinkhorn-Knopp) and q (student) as in dino.py, tokens in place of views.

Letters: B images, P patches, M masked tokens of all images, D embedding, K prototypes.

Reference: Zhou et al. 2022, "iBOT: Image BERT Pre-Training with Online Tokenizer", arXiv:2111.07832, Eq. 2; the weights
1/M_b: Oquab et al. 2023, "DINOv2", arXiv:2304.07193.
"""

import torch
from torch import Tensor

from ssl_fast.distributed import Group
from ssl_fast.ops import contract
from ssl_fast.ops.dino import Center, teacher_bias, unit_prototypes
from ssl_fast.ops.dispatch import choose
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.prototypes import Pairs, compare, prototypes_reference, result_dtype


def ibot_reference(
    student: Tensor,  # [M, D], or logits [M, K]
    teacher: Tensor,  # [M, D], or logits [M, K]
    masks: Tensor,  # [B, P] bool
    weight_student: Tensor | None = None,  # [K, D]
    weight_teacher: Tensor | None = None,  # [K, D]
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    center: Tensor | None = None,  # [K]
) -> Tensor:
    """The equation in plain torch, in the dtype of the student: oracle and baseline."""
    loss = prototypes_reference(
        student[None], weight_student, teacher[None], weight_teacher,
        None if center is None else center[None] / -teacher_temperature,
        student_temperature=student_temperature, teacher_temperature=teacher_temperature, skip_same=False,
    )  # fmt: skip
    num_masked = masks.sum(1, keepdim=True)
    weight = (1 / num_masked.double()).expand_as(masks)[masks]
    return (loss * weight.to(loss.dtype)).sum() / len(masks)


def ibot_loss(
    student: Tensor,  # [M, D], or logits [M, K]
    teacher: Tensor,  # [M, D], or logits [M, K]
    masks: Tensor,  # [B, ...] bool
    weight_student: Tensor | None = None,  # [K, D]
    weight_teacher: Tensor | None = None,  # [K, D]
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    center: Center = None,  # [K], or "sinkhorn"
    sinkhorn_iterations: int = 3,
    normalize_prototypes: bool = False,
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """iBOT's loss over masked tokens; every image counts the same, however many of its tokens are masked.

    Logits or rows and prototypes, dtypes, memory and gradients are as in `dino_loss`.

    Args:
        student: the student's output at the masked tokens, in the order of `masks.nonzero()`, [M, D] (or logits).
        teacher: the teacher's at the same tokens, [M, D] (or logits).
        masks: which tokens are masked, [B, P] or [B, H, W], bool, with M true entries.
        weight_student: as in `dino_loss`.
        weight_teacher: as in `dino_loss`.
        student_temperature: positive number.
        teacher_temperature: positive number.
        center: [K], "sinkhorn" (over the masked tokens of all ranks) or None.
        sinkhorn_iterations: at least 1; see `sinkhorn`.
        normalize_prototypes: scale the prototypes to unit length first.
        group: process group over whose images "mean" and "sum" run; numbers of images and tokens may differ.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP), "sum" when they are added.
        reduction: "mean" over the images of all ranks, those without a masked token too; "sum" over the images; or
            "none": [M], each token's loss times its weight 1 / M_b.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [M].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value. (How many entries of `masks` are true is
            checked on a CPU only; on a GPU a wrong number fails inside torch.)
        RuntimeError: `impl` is not available here.

    Example:
        >>> masks = torch.tensor([[True, False, False], [True, True, False]])
        >>> round(ibot_loss(torch.zeros(3, 4), torch.eye(4)[:3], masks).item(), 4)  # log 4
        1.3863

    Reference: Zhou et al. 2022, arXiv:2111.07832, Eq. 2.
    """
    for name, rows in (("student", student), ("teacher", teacher)):
        if rows.dim() != 2:
            raise ValueError(f"{name} must have shape [M, D], got {list(rows.shape)}")
    pairs = Pairs(student_temperature, teacher_temperature, False, group, grad_reduce, reduction, impl)
    pairs.check(student[None], teacher[None], weight_student, weight_teacher)
    weight = _token_weights(masks, student, impl)
    weight_student, weight_teacher = unit_prototypes(weight_student, weight_teacher, normalize_prototypes)
    bias = None
    if center is not None:
        settings = (center, teacher_temperature, sinkhorn_iterations, group, impl)
        bias = teacher_bias(teacher.detach(), weight_teacher, *settings)[None]
    return compare(student[None], weight_student, teacher[None], weight_teacher, bias, weight, pairs, len(masks))


def _token_weights(
    masks: Tensor,  # [B, ...] bool
    tokens: Tensor,  # [M, D]
    impl: str,
) -> Tensor:
    """1 / (masked tokens of its image) for each token, [M]."""
    if masks.dim() < 2 or masks.dtype != torch.bool:
        raise ValueError(f"masks must be bool of shape [B, P], got {masks.dtype} of shape {list(masks.shape)}")
    num_tokens, dtype, plain = tokens.shape[0], result_dtype(tokens), masks.is_cpu and contract.plainly()
    kernel = choose("prototype_logits", impl, tokens) if plain else None
    weights: Tensor
    if kernel is not None and hasattr(kernel, "token_weights"):
        weights, found = kernel.token_weights(masks, num_tokens, dtype)
    else:
        num_masked = masks.flatten(1).sum(1)
        found = int(num_masked.sum()) if plain else num_tokens
        # Nobody asks for that of an image without tokens. `output_size` saves a GPU the wait for M.
        weights = num_masked.to(dtype).reciprocal_().repeat_interleave(num_masked, output_size=found)
    if found != num_tokens:
        raise ValueError(f"masks must have as many true entries as there are tokens, {num_tokens}, got {found}")
    return weights


class IBOTLoss(LossModule):
    """`ibot_loss` as a module; the arguments are those of the function."""

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
        student: Tensor,  # [M, D], or logits [M, K]
        teacher: Tensor,  # [M, D], or logits [M, K]
        masks: Tensor,  # [B, ...] bool
        weight_student: Tensor | None = None,  # [K, D]
        weight_teacher: Tensor | None = None,  # [K, D]
        center: Center = None,  # [K], or "sinkhorn"
    ) -> Tensor:
        """`ibot_loss(...)` with the module's settings."""
        return ibot_loss(student, teacher, masks, weight_student, weight_teacher, center=center, **self.settings)
