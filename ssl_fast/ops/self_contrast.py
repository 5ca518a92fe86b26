"""The engine of all losses that compare one set of rows with itself: nt_xent, supcon and dcl.

They differ in which rows are positives (the other view, or the class) and in whether the positive stays in the
denominator. The kernels are those of nt_xent; an op brings its equation as `equation_of_rows`.

Letters: N samples, D embedding, R rows of this rank, M rows of all ranks, x raw rows, z unit rows.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ssl_fast.distributed import Group, gradient_factor
from ssl_fast.ops import contract
from ssl_fast.ops.classes import LEFT_OUT
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.global_rows import GlobalRows
from ssl_fast.ops.objective import Objective, Rows, wide


def _temperature_gradient(
    zdz: Tensor,  # [R]
    inverse: float | Tensor,
) -> Tensor:
    """This rank's share []. Both rows count a pair: d/d(1/temperature) = sum_i <z_i, dz_i> temperature / 2."""
    return zdz.sum() * inverse * -0.5


def _self_contrast(
    x: Tensor,  # [R, D] this rank's rows, view after view
    second: Tensor | None,  # [R, D] of two views the second, when it is not in x
    weight: Tensor | None,  # [N], repeated for every view
    temperature: Tensor | None,  # []
    labels: Tensor | None,  # [R] int64
    inv_temperature: float,
    normalize: bool,
    average: bool,
    group: str,
    factor: int,
    op: str,
    num_views: int,
    ignore_index: int,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor | None, ...]:
    """The global objective [] and, when wanted, its gradients: dx and dsecond, dweight [N], dtemperature []."""
    kernel = choose(op, impl, x)
    if not group and x.numel() and hasattr(kernel, "objective"):
        inverse = float(contract.inverse_of(temperature, inv_temperature, x))
        classes = (labels, ignore_index, num_views, op == "dcl")
        wanted = (with_grad, temperature is not None)
        found: tuple[Tensor | None, ...]
        found = kernel.objective(x, second, weight, inverse, normalize, average, *classes, *wanted)
        return found
    rows = x if second is None else torch.cat((x, second))
    state = (rows, labels, temperature, inv_temperature, normalize, group, op, num_views, ignore_index)
    value, dx, dweight, dtemperature = _in_steps(kernel, *state, weight, average, factor, with_grad)
    if second is None or dx is None:
        return value, dx, None, dweight, dtemperature
    return value, dx[: len(x)], dx[len(x) :], dweight, dtemperature


def _rows_of(
    x: Tensor,  # [R, D]
    labels: Tensor | None,  # [R] int64
    group: str,
    num_views: int,
    ignore_index: int,
) -> GlobalRows:
    kept = None if labels is None else labels.masked_fill(labels == ignore_index, LEFT_OUT)
    return GlobalRows(x, group, num_views, kept)


def _in_steps(
    kernel: Any,
    x: Tensor,  # [R, D]
    labels: Tensor | None,  # [R] int64
    temperature: Tensor | None,  # []
    inv_temperature: float,
    normalize: bool,
    group: str,
    op: str,
    num_views: int,
    ignore_index: int,
    weight: Tensor | None,  # [N]
    average: bool,
    factor: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Losses, their coefficients over all ranks, gradients: value [], dx [R, D], dweight [N], dtemperature []."""
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    rows = _rows_of(x, labels, group, num_views, ignore_index)
    kind = (rows.classes, op == "dcl")
    loss, local_log_l = kernel.forward(rows.x, rows.positive, rows.mine, inverse, normalize, *kind)
    counted = None if labels is None or rows.classes is None else rows.classes.num_positives > 0
    if weight is None and counted is None:
        all_loss, log_l = rows.gather(loss, local_log_l)
        total = max(len(all_loss), 1) if average else 1
        value = all_loss.mean() if total > 1 else all_loss.sum()
        coef = torch.full_like(all_loss, factor / total) if with_grad else None
    else:
        if weight is None:
            all_loss, log_l = rows.gather(loss, local_log_l)
            all_weight = torch.ones_like(all_loss)
        else:
            repeated = weight.to(loss.dtype).repeat(num_views)
            all_loss, log_l, all_weight = rows.gather(loss, local_log_l, repeated)
        all_weight = all_weight if counted is None else all_weight * counted
        sums = all_weight.sum() if average else all_weight.new_ones(())
        scale = torch.where(sums == 0, 1, sums).reciprocal()
        value, coef = (all_loss * all_weight).sum() * scale, all_weight * (scale * factor)
    if coef is None or not with_grad:
        return value, None, None, None
    dx, zdz = kernel.backward(rows.x, rows.positive, coef, log_l, rows.mine, inverse, normalize, *kind)
    dtemperature = None if temperature is None else _temperature_gradient(zdz, inverse)
    if weight is None:
        return value, dx, None, dtemperature
    above = loss - value if average else loss
    if counted is not None:
        above = above * counted[rows.mine[0] : rows.mine[1]]
    return value, dx, above.view(num_views, len(weight)).sum(0) * (scale * factor), dtemperature


def _self_contrast_rows(
    x: Tensor,  # [R, D]
    temperature: Tensor | None,  # []
    labels: Tensor | None,  # [R] int64
    inv_temperature: float,
    normalize: bool,
    group: str,
    op: str,
    num_views: int,
    ignore_index: int,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Loss [R] and log-normaliser [R] of this rank's rows."""
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    kernel, rows = choose(op, impl, x), _rows_of(x, labels, group, num_views, ignore_index)
    kind = (rows.classes, op == "dcl")
    loss, log_l = kernel.forward(rows.x, rows.positive, rows.mine, inverse, normalize, *kind)
    return loss, log_l


def _self_contrast_rows_backward(
    upstream: Tensor,  # [R]
    local_log_l: Tensor,  # [R]
    x: Tensor,  # [R, D]
    temperature: Tensor | None,  # []
    labels: Tensor | None,  # [R] int64
    inv_temperature: float,
    normalize: bool,
    group: str,
    op: str,
    num_views: int,
    ignore_index: int,
    impl: str,
) -> tuple[Tensor, Tensor | None]:
    """dx [R, D] and this rank's share of dtemperature, of what all ranks make of their rows' losses."""
    kernel, rows = choose(op, impl, x), _rows_of(x, labels, group, num_views, ignore_index)
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    coef, log_l = rows.gather(upstream.to(local_log_l.dtype).contiguous(), local_log_l)
    kind = (rows.classes, op == "dcl")
    dx, zdz = kernel.backward(rows.x, rows.positive, coef, log_l, rows.mine, inverse, normalize, *kind)
    return dx, None if temperature is None else _temperature_gradient(zdz, inverse)


def _equation(
    x: Tensor,  # [R, D]
    second: Tensor | None,  # [R, D]
    weight: Tensor | None,  # [N]
    temperature: Tensor | None,  # []
    labels: Tensor | None,  # [R]
    inv_temperature: float,
    normalize: bool,
    average: bool | None,
    group: str,
    factor: int,
    op: str,
    num_views: int,
    ignore_index: int,
    impl: str,
) -> Tensor:
    """The op's plain form on the engine's rows: a scalar, or [R] where `average` is None."""
    plain = import_module(f"ssl_fast.ops.{op}").equation_of_rows
    rows = contract.widened(x if second is None else torch.cat((x, second)))
    tau = 1 / inv_temperature if temperature is None else temperature
    reduction = "none" if average is None else "mean" if average else "sum"
    loss: Tensor = plain(rows, labels, tau, normalize, num_views, ignore_index, weight, reduction)
    return loss.flatten() if average is None else loss


def _equation_rows(
    x: Tensor,
    temperature: Tensor | None,
    labels: Tensor | None,
    inv_temperature: float,
    normalize: bool,
    group: str,
    *kind: Any,
) -> Tensor:
    return _equation(x, None, None, temperature, labels, inv_temperature, normalize, None, group, 1, *kind)


def _fake_rows(x: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return wide(x, len(x)), wide(x, len(x))


_KIND = "str op, int num_views, int ignore_index, str impl"
_OBJECTIVE = Objective(
    "self_contrast",
    "Tensor x, Tensor? second, Tensor? weight, Tensor? temperature, Tensor? labels",
    f"float inv_temperature, bool normalize, bool average, str group, int factor, {_KIND}",
    _self_contrast,
    _equation,
    num_gradients=4,
    title="a contrastive loss",
)
_ROWS = Rows(
    "self_contrast_rows",
    "Tensor x, Tensor? temperature, Tensor? labels",
    f"float inv_temperature, bool normalize, str group, {_KIND}",
    _self_contrast_rows,
    _self_contrast_rows_backward,
    _equation_rows,
    _fake_rows,
    num_gradients=2,
    title="a contrastive loss",
)


def self_contrast(
    op: str,
    views: tuple[Tensor, ...],  # one of [R, D], view after view; or each [N, D]
    num_views: int,
    labels: Tensor | None = None,  # [R] int64
    *,
    ignore_index: int = LEFT_OUT,
    temperature: float | Tensor,
    normalize: bool,
    weight: Tensor | None,  # [R / num_views]
    group: Group,
    grad_reduce: str,
    reduction: str,
    impl: str,
) -> Tensor:
    """The op on rows whose shapes were checked: a scalar, or [num_views, N] under `reduction="none"`.

    Without labels, rows i and j are of one sample where i = j modulo R / num_views. Rows without a positive count
    only where there are no labels.
    """
    contract.check_reduction(reduction)
    check_impl(op, impl)
    tensor, inverse = contract.split_temperature(temperature)
    factor = gradient_factor(group, grad_reduce)
    name = "" if group is None else group.group_name
    kind = (op, num_views, ignore_index, impl)
    if reduction == "none":
        x = views[0] if len(views) == 1 else torch.cat(views)
        rows = _ROWS((x, tensor, labels), (inverse, normalize, name, *kind))
        rows = rows.view(num_views, len(x) // num_views)
        return rows if weight is None else rows * weight
    # Two views stay apart where a kernel may take them so; what a registered op returns must not share memory.
    apart = len(views) == 2 and views[0].dtype == views[1].dtype and not contract.under_tracing()
    x, second = views if apart else (views[0] if len(views) == 1 else torch.cat(views), None)
    options = (inverse, normalize, reduction == "mean", name, factor, *kind)
    return _OBJECTIVE((x, second, weight, tensor, labels), options)
