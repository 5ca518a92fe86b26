"""What the losses with a margin share: checks, labels as targets of this rank's classes, sampling, the call."""

from typing import Any

import torch
from torch import Tensor

from ssl_fast.distributed import Group, all_gather_rows, gather_sizes, gradient_factor, group_by_name
from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.margin_softmax import (
    ELSEWHERE,
    IGNORED,
    OBJECTIVE,
    ROWS,
    margin_softmax_reference,
)
from ssl_fast.ops.margins import Margin
from ssl_fast.ops.partial_fc import sample_classes

MARGIN_GRADS = ("exact", "straight_through")


def margin_loss(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    labels: Tensor,  # [N] int64
    margin: Margin,
    *,
    scale: float | Tensor = 64.0,
    row_margins: Tensor | None = None,  # [2, N]
    hardness: Tensor | None = None,  # []
    ignore_index: int = -1,
    normalize: bool = True,
    sample_rate: float = 1.0,
    generator: torch.Generator | None = None,
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """The loss of `margin_softmax_reference`; arguments as those of `arcface`, the margin as a rule.

    Args:
        row_margins: m2 and m3 of each row, [2, N], instead of the margin's own.
        hardness: t of CurricularFace, []; None: negatives stay as they are.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, a second derivative or a torch.func transform with `group` or
            `sample_rate`, or both of these under torch.compile.
    """
    _check(x, weight, labels, sample_rate)
    contract.check_reduction(reduction)
    check_impl("margin_softmax", impl)
    factor = gradient_factor(group, grad_reduce)
    tensor, value = _split_scale(scale)
    options: dict[str, Any] = {"row_margins": row_margins, "hardness": hardness, "normalize": normalize}
    if contract.under_functorch():
        if group is not None:
            raise RuntimeError("margin losses with group= do not work inside torch.func transforms")
        if sample_rate < 1:
            raise RuntimeError(f"margin losses sample no classes inside torch.func transforms, got {sample_rate=}")
        wide = contract.widened(x)
        options |= {"scale": scale, "ignore_index": ignore_index, "reduction": reduction}
        with torch.autocast(x.device.type, enabled=False):
            return margin_softmax_reference(wide, weight.to(wide.dtype), labels, margin, **options)
    kernel = choose("margin_softmax", impl, x, weight) if group is None and contract.plainly() else None
    if kernel is not None and hasattr(kernel, "targets"):
        target, wrong = kernel.targets(labels, weight.shape[0], ignore_index, IGNORED)
        if wrong >= 0:
            raise _wrong_label(labels[wrong], weight.shape[0], ignore_index)
    else:
        target = targets(labels, weight.shape[0], ignore_index, group)
    if sample_rate < 1:
        if group is not None and contract.under_tracing():
            raise RuntimeError("margin losses with group= sample no classes under torch.compile")
        rows, target = sample_classes(target, len(weight), sample_rate, generator)
        weight = weight.index_select(0, rows)
    if row_margins is not None:
        row_margins = row_margins.detach() if group is None else _gathered(row_margins.T, group).T
    name = "" if group is None else group.group_name
    flags = [margin.monotone, margin.exact, normalize]
    numbers = [float(margin.m1), float(margin.m2), float(margin.m3)]  # torch 2.6 cannot trace a slice of a NamedTuple
    tensors = (x, weight, tensor, target, row_margins, hardness)
    shared = (value, numbers, flags, name, impl)
    if reduction == "none":
        tensors = (x, weight if weight.dim() == 3 else weight[:, None], *tensors[2:])
        return ROWS(tensors, (*shared, factor))
    return OBJECTIVE(tensors, (*shared, reduction == "mean", factor))


def targets(
    labels: Tensor,  # [N] int64
    num_classes: int,
    ignore_index: int,
    group: Group,
) -> Tensor:
    """All ranks' labels as places among the `num_classes` classes of this rank, [M]; else ELSEWHERE or IGNORED."""
    if group is not None and contract.under_tracing():
        found: Tensor = torch.ops.ssl_fast.margin_targets(labels, num_classes, ignore_index, group.group_name)
        return found
    return _targets(labels, num_classes, ignore_index, group)


def _targets(labels: Tensor, num_classes: int, ignore_index: int, group: Group) -> Tensor:
    sizes = gather_sizes(num_classes, group, labels.device)
    if labels.device.type == "cpu" and not contract.under_tracing():
        wrong = ((labels < 0) | (labels >= sum(sizes))) & (labels != ignore_index)
        if wrong.any():
            raise _wrong_label(labels[wrong][0], sum(sizes), ignore_index)
    first = 0 if group is None else sum(sizes[: group.rank()])
    everyones = all_gather_rows(labels, group)
    local = everyones - first
    local = torch.where((local >= 0) & (local < num_classes), local, ELSEWHERE)
    return torch.where(everyones == ignore_index, IGNORED, local)


def _wrong_label(label: Tensor, num_classes: int, ignore_index: int) -> ValueError:
    return ValueError(f"labels must lie in [0, {num_classes}) or be ignore_index={ignore_index}, got {label.item()}")


def _gathered(rows: Tensor, group: Group) -> Tensor:
    if group is not None and contract.under_tracing():
        found: Tensor = torch.ops.ssl_fast.margin_gathered(rows, group.group_name)
        return found
    return all_gather_rows(rows, group)


# How many rows the other ranks have is data: the two gathers are ops of their own to torch.compile.
contract.register(
    "margin_targets(Tensor labels, int num_classes, int ignore_index, str group) -> Tensor",
    lambda labels, num_classes, ignore_index, group: _targets(labels, num_classes, ignore_index, group_by_name(group)),
    lambda labels, *others: labels.new_empty(torch.library.get_ctx().new_dynamic_size()),
)
contract.register(
    "margin_gathered(Tensor rows, str group) -> Tensor",
    lambda rows, group: all_gather_rows(rows, group_by_name(group)),
    lambda rows, group: rows.new_empty(torch.library.get_ctx().new_dynamic_size(), *rows.shape[1:]),
)


def is_exact(margin_grad: str) -> bool:
    """Whether the margin's own derivative is wanted; ValueError for anything but the two names."""
    if margin_grad not in MARGIN_GRADS:
        raise ValueError(f"margin_grad must be 'exact' or 'straight_through', got {margin_grad!r}")
    return margin_grad == "exact"


def _check(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    labels: Tensor,  # [N]
    sample_rate: float,
) -> None:
    contract.check_rows("x", x)
    if weight.dim() not in (2, 3) or not weight.is_floating_point() or weight.shape[-1] != x.shape[1]:
        raise ValueError(
            f"weight must be floating point of shape [C, {x.shape[1]}] or [C, S, {x.shape[1]}], "
            f"got {weight.dtype} of shape {list(weight.shape)}"
        )
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 of shape [{len(x)}], one per row of x, "
            f"got {labels.dtype} of shape {list(labels.shape)}"
        )
    if weight.device != x.device or labels.device != x.device:
        raise ValueError(f"weight and labels must be on {x.device} as x is, got {weight.device} and {labels.device}")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must lie in (0, 1], got {sample_rate}")


def _split_scale(scale: float | Tensor) -> tuple[Tensor | None, float]:
    """A scale as (tensor, 0.0) or (None, number). A tensor's value is not read: that would wait for it."""
    if isinstance(scale, Tensor):
        if scale.dim() != 0 or not scale.is_floating_point():
            raise ValueError(
                "scale must be a positive number or a floating-point tensor of shape [], "
                f"got {scale.dtype} of shape {list(scale.shape)}"
            )
        return scale, 0.0
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    return None, float(scale)
