r"""NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR, without the N x N matrix.

    loss_i = -log( exp(s_ip) / sum_{j != i} exp(s_ij) ),    s_ij = <z_i, z_j> / temperature,    z_i = x_i / |x_i|

over the rows of all views; p is the other view of row i's sample. With V > 2 views the loss of a row is the mean over its
V - 1 positives (each with the whole sum below it, the other positives included).

Letters: N samples, V views, D embedding, M = V N rows, x raw rows [M, D], z unit rows [M, D].

Reference: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", arXiv:2002.05709, Eq. 1.
"""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.distributed import Group, gradient_factor
from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.global_rows import GlobalRows


def nt_xent_reference(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    *views: Tensor,  # each [N, D]
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    reduction: str = "mean",
) -> Tensor:
    """The equation in plain torch, in the dtype of the views: fallback, oracle and baseline. Differentiable any number of times."""
    z = torch.cat((z1, z2, *views))
    z = F.normalize(z, dim=1, eps=1e-12) if normalize else z
    row = torch.arange(len(z), device=z.device)
    logits = (z @ z.T / temperature).masked_fill(row[:, None] == row, -torch.inf)  # [M, M]
    shifts = torch.arange(1, 2 + len(views), device=z.device) * len(z1)
    positive = (row[:, None] + shifts) % max(len(z), 1)  # [M, V - 1]
    loss = logits.logsumexp(1) - logits.gather(1, positive).mean(1)  # [M]
    loss = loss.view(2 + len(views), len(z1))  # [V, N]
    weighted = loss if weight is None else loss * weight
    if reduction != "mean":
        return weighted if reduction == "none" else weighted.sum()
    total = loss.numel() if weight is None else weight.sum() * len(loss)
    return weighted.sum() / (total + (total == 0))


def _loss(kernel: ModuleType, rows: GlobalRows, inverse: float | Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """Loss [R] and log-normaliser [R] of this rank's rows."""
    loss, log_l = kernel.forward(rows.x, rows.positives[0], rows.mine, inverse, normalize)
    for positive in rows.positives[1:]:
        loss = loss + kernel.forward(rows.x, positive, rows.mine, inverse, normalize)[0]
    return (loss, log_l) if len(rows.positives) == 1 else (loss / len(rows.positives), log_l)


def _gradients(
    kernel: ModuleType,
    rows: GlobalRows,
    coef: Tensor,  # [M]
    log_l: Tensor,  # [M]
    inverse: float | Tensor,
    normalize: bool,
    temperature: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Of sum_i coef_i loss_i over all ranks' rows: dx [R, D] of this rank's, and this rank's share of dtemperature."""
    coef = coef / len(rows.positives) if len(rows.positives) > 1 else coef
    parts = [
        kernel.backward(rows.x, positive, coef, log_l, rows.mine, inverse, normalize) for positive in rows.positives
    ]
    dx, zdz = parts[0]
    for more_dx, more_zdz in parts[1:]:
        dx, zdz = dx + more_dx, zdz + more_zdz
    # Each pair is counted from both of its rows: d/d(1/temperature) = sum <z, dz> temperature / 2.
    return dx, None if temperature is None else zdz.sum() * inverse * -0.5


def _nt_xent(
    x: Tensor,  # [R, D] this rank's rows, view after view
    weight: Tensor | None,  # [N]
    temperature: Tensor | None,  # []
    inv_temperature: float,
    normalize: bool,
    num_views: int,
    average: bool,
    group: str,
    factor: int,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The global objective [] and, when wanted, its gradients: dx [R, D], dweight [N], dtemperature []."""
    kernel = choose("nt_xent", impl, x)
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    rows = GlobalRows(x, num_views, group)
    loss, local_log_l = _loss(kernel, rows, inverse, normalize)
    if weight is None:
        all_loss, log_l = rows.gather(loss, local_log_l)
        total = float(max(len(all_loss), 1)) if average else 1.0
        value = all_loss.sum() / total
        coef = torch.full_like(all_loss, factor / total) if with_grad else None
    else:
        all_loss, log_l, all_weight = rows.gather(loss, local_log_l, weight.to(loss.dtype).repeat(num_views))
        sums = all_weight.sum() if average else all_weight.new_ones(())
        scale = torch.where(sums == 0, 1, sums).reciprocal()
        value, coef = (all_loss * all_weight).sum() * scale, all_weight * (scale * factor)
    if coef is None or not with_grad:
        return value, None, None, None
    dx, dtemperature = _gradients(kernel, rows, coef, log_l, inverse, normalize, temperature)
    if weight is None:
        return value, dx, None, dtemperature
    above = loss - value if average else loss
    return value, dx, above.view(num_views, -1).sum(0) * (scale * factor), dtemperature


def _nt_xent_rows(
    x: Tensor,  # [R, D]
    temperature: Tensor | None,  # []
    inv_temperature: float,
    normalize: bool,
    num_views: int,
    group: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Loss [R] and log-normaliser [R] of this rank's rows."""
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    return _loss(choose("nt_xent", impl, x), GlobalRows(x, num_views, group), inverse, normalize)


def _nt_xent_rows_backward(
    x: Tensor,  # [R, D]
    upstream: Tensor,  # [R]
    local_log_l: Tensor,  # [R]
    temperature: Tensor | None,  # []
    inv_temperature: float,
    normalize: bool,
    num_views: int,
    group: str,
    impl: str,
) -> tuple[Tensor, Tensor | None]:
    """dx [R, D] and this rank's share of dtemperature, of what all ranks make of their rows' losses."""
    kernel, rows = choose("nt_xent", impl, x), GlobalRows(x, num_views, group)
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    coef, log_l = rows.gather(upstream.to(local_log_l.dtype).contiguous(), local_log_l)
    return _gradients(kernel, rows, coef, log_l, inverse, normalize, temperature)


def _again(
    x: Tensor,
    weight: Tensor | None,
    temperature: Tensor | None,
    upstream: Tensor,
    reduction: str,
    options: tuple[Any, ...],
) -> list[Tensor | None]:
    """The gradients once more through the reference, so that they have gradients."""
    inv_temperature, normalize, num_views, group = options
    if group:
        raise RuntimeError("nt_xent with group= cannot be differentiated twice (create_graph=True)")

    def reference(x: Tensor, weight: Tensor | None, temperature: Tensor | None) -> Tensor:
        return nt_xent_reference(
            *contract.widened(x).chunk(num_views),
            temperature=1 / inv_temperature if temperature is None else temperature,
            normalize=normalize,
            weight=weight,
            reduction=reduction,
        )

    return contract.differentiable_gradients(reference, (x, weight, temperature), upstream)


class _NTXent(torch.autograd.Function):
    """The objective; its gradients are made in the forward pass, the backward pass only multiplies them."""

    forward = staticmethod(_nt_xent)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.save_for_backward(*inputs[:3], *output[1:])
        ctx.mark_non_differentiable(*(t for t in output[1:] if t is not None))
        ctx.set_materialize_grads(False)
        ctx.options = (inputs[3], inputs[4], inputs[5], inputs[7])
        ctx.reduction = "mean" if inputs[6] else "sum"

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        x, weight, temperature, *gradients = ctx.saved_tensors
        inputs = (x, weight, temperature)
        if upstream[0] is None:
            return (None,) * 11
        if torch.is_grad_enabled():
            return *_again(*inputs, upstream[0], ctx.reduction, ctx.options), *(None,) * 8
        pairs = zip(gradients, inputs, ctx.needs_input_grad, strict=False)
        return *(contract.scaled(g, upstream[0], t) if need else None for g, t, need in pairs), *(None,) * 8


class _NTXentRows(torch.autograd.Function):
    """The loss of each row; the backward pass computes the logits again."""

    forward = staticmethod(_nt_xent_rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.save_for_backward(*inputs[:2], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.options, ctx.impl = inputs[2:6], inputs[6]

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        x, temperature, log_l = ctx.saved_tensors
        if upstream[0] is None:
            return (None,) * 7
        if torch.is_grad_enabled():
            again = upstream[0].view(ctx.options[2], -1)
            dx, _, dtemperature = _again(x, None, temperature, again, "none", ctx.options)
            return dx, dtemperature, *(None,) * 5
        run = torch.ops.ssl_fast.nt_xent_rows_backward if contract.under_tracing() else _nt_xent_rows_backward
        dx, dtemperature = run(x, upstream[0], log_l, temperature, *ctx.options, ctx.impl)
        return dx.to(x.dtype), None if temperature is None else dtemperature.to(temperature.dtype), *(None,) * 5


def _wide(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def _fake(x: Tensor, weight: Tensor | None, temperature: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    empty, wanted = x.new_empty(0), options[-1]
    dx = _wide(x, *x.shape) if wanted else empty
    dweight = empty if weight is None or not wanted else _wide(x, *weight.shape)
    return _wide(x), dx, dweight, empty if temperature is None or not wanted else _wide(x)


def _fake_rows(x: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return _wide(x, len(x)), _wide(x, len(x))


def _fake_rows_backward(x: Tensor, upstream: Tensor, log_l: Tensor, temperature: Tensor | None, *options: Any) -> Any:
    return _wide(x, *x.shape), x.new_empty(0) if temperature is None else _wide(x)


_COMMON = "Tensor? temperature, float inv_temperature, bool normalize, int num_views"
contract.register(
    f"nt_xent(Tensor x, Tensor? weight, {_COMMON}, bool average, str group, int factor, str impl, bool with_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _nt_xent,
    _fake,
    _NTXent,
)
contract.register(
    f"nt_xent_rows(Tensor x, {_COMMON}, str group, str impl) -> (Tensor, Tensor)",
    _nt_xent_rows,
    _fake_rows,
    _NTXentRows,
)
contract.register(
    f"nt_xent_rows_backward(Tensor x, Tensor upstream, Tensor log_l, {_COMMON}, str group, str impl) -> (Tensor, Tensor)",
    _nt_xent_rows_backward,
    _fake_rows_backward,
)


def nt_xent(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    *views: Tensor,  # each [N, D]
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """SimCLR's loss over the rows of all views, in memory O(N D).

    Rows are compared in their own dtype with fp32 accumulation (fp64 for fp64), under autocast too; the loss is at least
    fp32 and gradients come in the dtype of their input. N = 0 gives 0 and empty gradients; N = 1 with two views has no
    negative and gives 0. A zero row has similarity 0 with all others and a finite gradient.

    Args:
        z1: embeddings of the first view, [N, D]; row i of every view belongs to sample i.
        z2: embeddings of the second view, [N, D].
        views: further views, each [N, D].
        temperature: positive number, or a tensor of shape [] that may need a gradient.
        normalize: scale rows to unit length first (norms are clamped at 1e-12). False: rows are taken as they are.
        weight: weights >= 0 of the samples, [N]; "mean" is then the weighted mean. They may need a gradient.
        group: process group whose ranks' rows are all negatives, local batches may differ in size. Every rank returns
            the global value; gradients are exact without any communication of gradients. None: this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the number
            of ranks. "sum" when they are added.
        reduction: "mean" or "sum" over all rows (of all ranks), or "none": [V, N], the loss of each view of each local
            sample times its weight. Under "none" `grad_reduce` plays no part: `distributed.global_mean` applies it.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [V, N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, or a second derivative with `group`.

    Example:
        >>> z1, z2 = torch.eye(4), torch.eye(4)
        >>> round(nt_xent(z1, z2, temperature=1.0).item(), 4)  # log(e + 6) - 1
        1.1654

    Reference: Chen et al. 2020, arXiv:2002.05709, Eq. 1.
    """
    contract.check_rows("z1", z1)
    contract.check_rows("z2", z2, z1, "z1")
    for index, view in enumerate(views, 3):
        contract.check_rows(f"z{index}", view, z1, "z1")
    contract.check_weight(weight, len(z1))
    contract.check_reduction(reduction)
    check_impl(impl)
    tensor, inverse = contract.split_temperature(temperature)
    factor = gradient_factor(group, grad_reduce)
    if contract.under_functorch():
        return _transformed((z1, z2, *views), temperature, normalize, weight, group, reduction)
    x = torch.cat((z1, z2, *views))
    name = "" if group is None else group.group_name
    shared = (tensor, inverse, normalize, 2 + len(views))
    traced, recorded = contract.under_tracing(), contract.wants_gradient(x, weight, tensor)
    if reduction == "none":
        rows = (x, *shared, name, impl)
        run = torch.ops.ssl_fast.nt_xent_rows if traced else _NTXentRows.apply if recorded else _nt_xent_rows
        loss: Tensor = run(*rows)[0].view(2 + len(views), len(z1))
        return loss if weight is None else loss * weight
    run = torch.ops.ssl_fast.nt_xent if traced else _NTXent.apply if recorded else _nt_xent
    value: Tensor = run(x, weight, *shared, reduction == "mean", name, factor, impl, recorded)[0]
    return value


def _transformed(
    views: tuple[Tensor, ...],  # each [N, D]
    temperature: float | Tensor,
    normalize: bool,
    weight: Tensor | None,  # [N]
    group: Group,
    reduction: str,
) -> Tensor:
    """Inside torch.func: the reference, which every transform sees through."""
    if group is not None:
        raise RuntimeError("nt_xent with group= does not work inside torch.func transforms")
    z1, z2, *more = (contract.widened(view) for view in views)
    return nt_xent_reference(
        z1, z2, *more, temperature=temperature, normalize=normalize, weight=weight, reduction=reduction
    )


class NTXentLoss(nn.Module):
    """`nt_xent` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        normalize: bool = True,
        group: Group = None,
        grad_reduce: str = "mean",
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.temperature, self.normalize, self.impl = temperature, normalize, impl
        self.group, self.grad_reduce, self.reduction = group, grad_reduce, reduction

    def forward(
        self,
        z1: Tensor,  # [N, D]
        z2: Tensor,  # [N, D]
        *views: Tensor,  # each [N, D]
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        return nt_xent(
            z1,
            z2,
            *views,
            temperature=self.temperature,
            normalize=self.normalize,
            weight=weight,
            group=self.group,
            grad_reduce=self.grad_reduce,
            reduction=self.reduction,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, normalize={self.normalize}, reduction={self.reduction!r}, impl={self.impl!r}"
