"""The autograd of all losses that compare one set of rows with itself: nt_xent, supcon and dcl.

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
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.global_rows import GlobalRows


def _temperature_gradient(
    zdz: Tensor,  # [R]
    inverse: float | Tensor,
) -> Tensor:
    """This rank's share []. Both rows count a pair: d/d(1/temperature) = sum_i <z_i, dz_i> temperature / 2."""
    return zdz.sum() * inverse * -0.5


def _self_contrast(
    x: Tensor,  # [R, D] this rank's rows, view after view
    labels: Tensor | None,  # [R] int64
    weight: Tensor | None,  # [N], repeated for every view
    temperature: Tensor | None,  # []
    inv_temperature: float,
    normalize: bool,
    average: bool,
    group: str,
    factor: int,
    op: str,
    num_views: int,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The global objective [] and, when wanted, its gradients: dx [R, D], dweight [N], dtemperature []."""
    kernel = choose(op, impl, x)
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    rows = GlobalRows(x, group, num_views, labels)
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
    labels: Tensor | None,  # [R] int64
    temperature: Tensor | None,  # []
    inv_temperature: float,
    normalize: bool,
    group: str,
    op: str,
    num_views: int,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Loss [R] and log-normaliser [R] of this rank's rows."""
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    kernel, rows = choose(op, impl, x), GlobalRows(x, group, num_views, labels)
    kind = (rows.classes, op == "dcl")
    loss, log_l = kernel.forward(rows.x, rows.positive, rows.mine, inverse, normalize, *kind)
    return loss, log_l


def _self_contrast_rows_backward(
    x: Tensor,  # [R, D]
    upstream: Tensor,  # [R]
    local_log_l: Tensor,  # [R]
    labels: Tensor | None,  # [R] int64
    temperature: Tensor | None,  # []
    inv_temperature: float,
    normalize: bool,
    group: str,
    op: str,
    num_views: int,
    impl: str,
) -> tuple[Tensor, Tensor | None]:
    """dx [R, D] and this rank's share of dtemperature, of what all ranks make of their rows' losses."""
    kernel, rows = choose(op, impl, x), GlobalRows(x, group, num_views, labels)
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    coef, log_l = rows.gather(upstream.to(local_log_l.dtype).contiguous(), local_log_l)
    kind = (rows.classes, op == "dcl")
    dx, zdz = kernel.backward(rows.x, rows.positive, coef, log_l, rows.mine, inverse, normalize, *kind)
    return dx, None if temperature is None else _temperature_gradient(zdz, inverse)


def _equation(
    op: str,
    x: Tensor,  # [R, D]
    labels: Tensor | None,  # [R]
    weight: Tensor | None,  # [N]
    temperature: float | Tensor,
    normalize: bool,
    num_views: int,
    reduction: str,
) -> Tensor:
    """The op's plain form on the engine's rows: a scalar, or [R]."""
    plain = import_module(f"ssl_fast.ops.{op}").equation_of_rows
    loss: Tensor = plain(contract.widened(x), labels, temperature, normalize, num_views, weight, reduction)
    return loss.flatten() if reduction == "none" else loss


def _again(
    x: Tensor,
    labels: Tensor | None,
    weight: Tensor | None,
    temperature: Tensor | None,
    upstream: Tensor,
    reduction: str,
    options: tuple[Any, ...],
) -> list[Tensor | None]:
    """The gradients of x, weight and temperature once more through the equation, so that they have gradients."""
    inv_temperature, normalize, group, op, num_views = options
    if group:
        raise RuntimeError(f"{op} with group= cannot be differentiated twice (create_graph=True)")

    def equation(x: Tensor, weight: Tensor | None, temperature: Tensor | None) -> Tensor:
        tau = 1 / inv_temperature if temperature is None else temperature
        return _equation(op, x, labels, weight, tau, normalize, num_views, reduction)

    return contract.differentiable_gradients(equation, (x, weight, temperature), upstream)


class _SelfContrast(torch.autograd.Function):
    """The objective; its gradients are made in the forward pass, the backward pass only multiplies them.

    `forward` takes ctx: for the form with `setup_context`, torch binds the arguments by name, 20 us a call.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _self_contrast(*inputs)
        _SelfContrast.save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        """Keeps what `backward` needs; also the set-up of the registered op."""
        ctx.save_for_backward(*inputs[:4], *output[1:])
        ctx.set_materialize_grads(False)
        ctx.options = (inputs[4], inputs[5], inputs[7], inputs[9], inputs[10])
        ctx.reduction = "mean" if inputs[6] else "sum"

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        x, labels, weight, temperature, *gradients = ctx.saved_tensors
        if upstream[0] is None:
            return (None,) * 13
        if torch.is_grad_enabled():
            again = _again(x, labels, weight, temperature, upstream[0], ctx.reduction, ctx.options)
            return again[0], None, *again[1:], *(None,) * 9
        # Out of place, for the graph may be walked again; autograd casts to the dtypes of the inputs.
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:4])
        dx, *others = (g * upstream[0] if need else None for g, need in zip(gradients, needed, strict=True))
        return dx, None, *others, *(None,) * 9


class _SelfContrastRows(torch.autograd.Function):
    """The loss of each row; the backward pass computes the logits again."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _self_contrast_rows(*inputs)
        _SelfContrastRows.save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keeps what `backward` needs; also the set-up of the registered op."""
        ctx.save_for_backward(*inputs[:3], output[1])
        ctx.set_materialize_grads(False)
        ctx.options, ctx.impl = inputs[3:8], inputs[8]

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        x, labels, temperature, log_l = ctx.saved_tensors
        if upstream[0] is None:
            return (None,) * 9
        if torch.is_grad_enabled():
            dx, _, dtemperature = _again(x, labels, None, temperature, upstream[0], "none", ctx.options)
            return dx, None, dtemperature, *(None,) * 6
        traced = contract.under_tracing()
        run: Any = torch.ops.ssl_fast.self_contrast_rows_backward if traced else _self_contrast_rows_backward
        dx, dtemperature = run(x, upstream[0], log_l, labels, temperature, *ctx.options, ctx.impl)
        return dx, None, None if temperature is None else dtemperature, *(None,) * 6


def _wide(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def _fake(
    x: Tensor, labels: Tensor | None, weight: Tensor | None, temperature: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    wanted = options[-1]
    dx = _wide(x, *x.shape) if wanted else x.new_empty(0)
    dweight = _wide(x, *weight.shape) if wanted and weight is not None else x.new_empty(0)
    return _wide(x), dx, dweight, _wide(x) if wanted and temperature is not None else x.new_empty(0)


def _fake_rows(x: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return _wide(x, len(x)), _wide(x, len(x))


def _fake_rows_backward(
    x: Tensor, upstream: Tensor, log_l: Tensor, labels: Tensor | None, temperature: Tensor | None, *options: Any
) -> Any:
    return _wide(x, *x.shape), x.new_empty(0) if temperature is None else _wide(x)


_COMMON = "Tensor? temperature, float inv_temperature, bool normalize"
_KIND = "str op, int num_views, str impl"
contract.register(
    f"self_contrast(Tensor x, Tensor? labels, Tensor? weight, {_COMMON}, bool average, str group, int factor, {_KIND},"
    " bool with_grad) -> (Tensor, Tensor, Tensor, Tensor)",
    _self_contrast,
    _fake,
    _SelfContrast,
)
contract.register(
    f"self_contrast_rows(Tensor x, Tensor? labels, {_COMMON}, str group, {_KIND}) -> (Tensor, Tensor)",
    _self_contrast_rows,
    _fake_rows,
    _SelfContrastRows,
)
contract.register(
    f"self_contrast_rows_backward(Tensor x, Tensor upstream, Tensor log_l, Tensor? labels, {_COMMON}, str group,"
    f" {_KIND}) -> (Tensor, Tensor)",
    _self_contrast_rows_backward,
    _fake_rows_backward,
)


def self_contrast(
    op: str,
    x: Tensor,  # [R, D] view after view
    num_views: int,
    labels: Tensor | None = None,  # [R] int64
    *,
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
    shape = (num_views, len(x) // num_views)
    if contract.under_functorch():
        if group is not None:
            raise RuntimeError(f"{op} with group= does not work inside torch.func transforms")
        loss = _equation(op, x, labels, weight, temperature, normalize, num_views, reduction)
        return loss.view(shape) if reduction == "none" else loss
    name = "" if group is None else group.group_name
    recorded = contract.wants_gradient(x, weight, tensor)
    kind = (op, num_views, impl)
    if reduction == "none":
        inputs = (x, labels, tensor, inverse, normalize, name, *kind)
        rows = contract.call(_SelfContrastRows, _self_contrast_rows, "self_contrast_rows", recorded, inputs)
        return rows.view(shape) if weight is None else rows.view(shape) * weight
    whole = (x, labels, weight, tensor, inverse, normalize, reduction == "mean", name, factor, *kind, recorded)
    return contract.call(_SelfContrast, _self_contrast, "self_contrast", recorded, whole)
