r"""NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR, without the N x N matrix.

    loss_i = -log( exp(s_ip) / sum_{j != i} exp(s_ij) ),    s_ij = <z_i, z_j> / temperature,    z_i = x_i / |x_i|

over the 2 N rows of both views; p is the other view of row i's sample. Each term with its positive left out of the sum,
as softplus(log sum_{j != i, p} exp(s_ij) - s_ip), keeps its digits when the views align.

Letters: N samples, D embedding, R = 2 N rows of this rank, M rows of all ranks, x raw rows, z unit rows.

Reference: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", arXiv:2002.05709,
Eq. 1.
"""

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
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    reduction: str = "mean",
) -> Tensor:
    """The equation in plain torch, in the dtype of the views: oracle, baseline and second derivatives."""
    z = torch.cat((z1, z2))
    z = F.normalize(z, dim=1, eps=1e-12) if normalize else z
    row = torch.arange(len(z), device=z.device)
    logits = (z @ z.T / temperature).masked_fill(row[:, None] == row, -torch.inf)  # [2N, 2N]
    loss = logits.logsumexp(1) - logits[row, row.roll(len(z1))]
    loss = loss.view(2, len(z1)) if weight is None else loss.view(2, len(z1)) * weight
    if reduction != "mean":
        return loss if reduction == "none" else loss.sum()
    total = loss.numel() if weight is None else weight.sum() * 2
    return loss.sum() / (total + (total == 0))


def _temperature_gradient(
    zdz: Tensor,  # [R]
    inverse: float | Tensor,
) -> Tensor:
    """This rank's share []. Both rows count a pair: d/d(1/temperature) = sum_i <z_i, dz_i> temperature / 2."""
    return zdz.sum() * inverse * -0.5


def _nt_xent(
    x: Tensor,  # [R, D] this rank's rows, view after view
    weight: Tensor | None,  # [N]
    temperature: Tensor | None,  # []
    inv_temperature: float,
    normalize: bool,
    average: bool,
    group: str,
    factor: int,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The global objective [] and, when wanted, its gradients: dx [R, D], dweight [N], dtemperature []."""
    kernel = choose("nt_xent", impl, x)
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    rows = GlobalRows(x, group)
    loss, local_log_l = kernel.forward(rows.x, rows.positive, rows.mine, inverse, normalize)
    if weight is None:
        all_loss, log_l = rows.gather(loss, local_log_l)
        total = max(len(all_loss), 1) if average else 1
        value = all_loss.mean() if total > 1 else all_loss.sum()
        coef = torch.full_like(all_loss, factor / total) if with_grad else None
    else:
        all_loss, log_l, all_weight = rows.gather(loss, local_log_l, weight.to(loss.dtype).repeat(2))
        sums = all_weight.sum() if average else all_weight.new_ones(())
        scale = torch.where(sums == 0, 1, sums).reciprocal()
        value, coef = (all_loss * all_weight).sum() * scale, all_weight * (scale * factor)
    if coef is None or not with_grad:
        return value, None, None, None
    dx, zdz = kernel.backward(rows.x, rows.positive, coef, log_l, rows.mine, inverse, normalize)
    dtemperature = None if temperature is None else _temperature_gradient(zdz, inverse)
    if weight is None:
        return value, dx, None, dtemperature
    above = loss - value if average else loss
    return value, dx, above.view(2, -1).sum(0) * (scale * factor), dtemperature


def _nt_xent_rows(
    x: Tensor,  # [R, D]
    temperature: Tensor | None,  # []
    inv_temperature: float,
    normalize: bool,
    group: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Loss [R] and log-normaliser [R] of this rank's rows."""
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    kernel, rows = choose("nt_xent", impl, x), GlobalRows(x, group)
    loss, log_l = kernel.forward(rows.x, rows.positive, rows.mine, inverse, normalize)
    return loss, log_l


def _nt_xent_rows_backward(
    x: Tensor,  # [R, D]
    upstream: Tensor,  # [R]
    local_log_l: Tensor,  # [R]
    temperature: Tensor | None,  # []
    inv_temperature: float,
    normalize: bool,
    group: str,
    impl: str,
) -> tuple[Tensor, Tensor | None]:
    """dx [R, D] and this rank's share of dtemperature, of what all ranks make of their rows' losses."""
    kernel, rows = choose("nt_xent", impl, x), GlobalRows(x, group)
    inverse = contract.inverse_of(temperature, inv_temperature, x)
    coef, log_l = rows.gather(upstream.to(local_log_l.dtype).contiguous(), local_log_l)
    dx, zdz = kernel.backward(rows.x, rows.positive, coef, log_l, rows.mine, inverse, normalize)
    return dx, None if temperature is None else _temperature_gradient(zdz, inverse)


def _again(
    x: Tensor,
    weight: Tensor | None,
    temperature: Tensor | None,
    upstream: Tensor,
    reduction: str,
    options: tuple[Any, ...],
) -> list[Tensor | None]:
    """The gradients once more through the reference, so that they have gradients."""
    inv_temperature, normalize, group = options
    if group:
        raise RuntimeError("nt_xent with group= cannot be differentiated twice (create_graph=True)")

    def reference(x: Tensor, weight: Tensor | None, temperature: Tensor | None) -> Tensor:
        z1, z2 = contract.widened(x).view(2, len(x) // 2, x.shape[1])
        tau = 1 / inv_temperature if temperature is None else temperature
        return nt_xent_reference(z1, z2, tau, normalize, weight, reduction)

    return contract.differentiable_gradients(reference, (x, weight, temperature), upstream)


class _NTXent(torch.autograd.Function):
    """The objective; its gradients are made in the forward pass, the backward pass only multiplies them.

    `forward` takes ctx: for the form with `setup_context`, torch binds the arguments by name, 20 us a call.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _nt_xent(*inputs)
        _NTXent.save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        """Keeps what `backward` needs; also the set-up of the registered op."""
        ctx.save_for_backward(*inputs[:3], *output[1:])
        ctx.set_materialize_grads(False)
        ctx.options = (inputs[3], inputs[4], inputs[6])
        ctx.reduction = "mean" if inputs[5] else "sum"

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        x, weight, temperature, *gradients = ctx.saved_tensors
        inputs = (x, weight, temperature)
        if upstream[0] is None:
            return (None,) * 10
        if torch.is_grad_enabled():
            return *_again(*inputs, upstream[0], ctx.reduction, ctx.options), *(None,) * 7
        # Out of place, for the graph may be walked again; autograd casts to the dtypes of the inputs.
        wanted = zip(gradients, ctx.needs_input_grad, strict=False)
        return *(gradient * upstream[0] if need else None for gradient, need in wanted), *(None,) * 7


class _NTXentRows(torch.autograd.Function):
    """The loss of each row; the backward pass computes the logits again."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _nt_xent_rows(*inputs)
        _NTXentRows.save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keeps what `backward` needs; also the set-up of the registered op."""
        ctx.save_for_backward(*inputs[:2], output[1])
        ctx.set_materialize_grads(False)
        ctx.options, ctx.impl = inputs[2:5], inputs[5]

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        x, temperature, log_l = ctx.saved_tensors
        if upstream[0] is None:
            return (None,) * 6
        if torch.is_grad_enabled():
            again = upstream[0].view(2, -1)
            dx, _, dtemperature = _again(x, None, temperature, again, "none", ctx.options)
            return dx, dtemperature, *(None,) * 4
        traced = contract.under_tracing()
        run: Any = torch.ops.ssl_fast.nt_xent_rows_backward if traced else _nt_xent_rows_backward
        dx, dtemperature = run(x, upstream[0], log_l, temperature, *ctx.options, ctx.impl)
        return dx, None if temperature is None else dtemperature, *(None,) * 4


def _wide(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def _fake(x: Tensor, weight: Tensor | None, temperature: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    wanted = options[-1]
    dx = _wide(x, *x.shape) if wanted else x.new_empty(0)
    dweight = _wide(x, *weight.shape) if wanted and weight is not None else x.new_empty(0)
    return _wide(x), dx, dweight, _wide(x) if wanted and temperature is not None else x.new_empty(0)


def _fake_rows(x: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return _wide(x, len(x)), _wide(x, len(x))


def _fake_rows_backward(x: Tensor, upstream: Tensor, log_l: Tensor, temperature: Tensor | None, *options: Any) -> Any:
    return _wide(x, *x.shape), x.new_empty(0) if temperature is None else _wide(x)


_COMMON = "Tensor? temperature, float inv_temperature, bool normalize"
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
    f"nt_xent_rows_backward(Tensor x, Tensor upstream, Tensor log_l, {_COMMON}, str group, str impl)"
    " -> (Tensor, Tensor)",
    _nt_xent_rows_backward,
    _fake_rows_backward,
)


def nt_xent(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    *views: Tensor,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """SimCLR's loss over the rows of both views, in memory O(N D).

    Rows are compared in their own dtype with fp32 accumulation (fp64 for fp64), under autocast too; the loss is at
    least fp32 and gradients come in the dtype of their input. N = 0 gives 0 and empty gradients; N = 1 has no negative
    and gives 0. A zero row has similarity 0 with all others and a finite gradient.

    Args:
        z1: embeddings of the first view, [N, D]; row i of both views belongs to sample i.
        z2: embeddings of the second view, [N, D].
        views: none yet; more than two views are refused.
        temperature: positive number, or a tensor of shape [] that may need a gradient.
        normalize: scale rows to unit length first (norms are clamped at 1e-12). False: rows are taken as they are.
        weight: weights >= 0 of the samples, [N]; "mean" is then the weighted mean. They may need a gradient.
        group: process group whose ranks' rows are all negatives, local batches may differ in size. Every rank returns
            the global value; gradients are exact without any communication of gradients. None: this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the
            number of ranks. "sum" when they are added.
        reduction: "mean" or "sum" over all rows (of all ranks), or "none": [2, N], the loss of each view of each local
            sample times its weight. Under "none" `grad_reduce` plays no part: `distributed.global_mean` applies it.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [2, N].

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
    if views:
        raise ValueError(f"nt_xent takes two views, got {2 + len(views)}")
    contract.check_weight(weight, len(z1))
    contract.check_reduction(reduction)
    check_impl("nt_xent", impl)
    tensor, inverse = contract.split_temperature(temperature)
    factor = gradient_factor(group, grad_reduce)
    if contract.under_functorch():
        return _transformed(z1, z2, temperature, normalize, weight, group, reduction)
    x = torch.cat((z1, z2))
    name = "" if group is None else group.group_name
    shared = (tensor, inverse, normalize)
    recorded = contract.wants_gradient(x, weight, tensor)
    if reduction == "none":
        loss = contract.call(_NTXentRows, _nt_xent_rows, "nt_xent_rows", recorded, (x, *shared, name, impl)).view(
            2, len(z1)
        )
        return loss if weight is None else loss * weight
    whole = (x, weight, *shared, reduction == "mean", name, factor, impl, recorded)
    return contract.call(_NTXent, _nt_xent, "nt_xent", recorded, whole)


def _transformed(
    z1: Tensor,  # [N, D]
    z2: Tensor,  # [N, D]
    temperature: float | Tensor,
    normalize: bool,
    weight: Tensor | None,  # [N]
    group: Group,
    reduction: str,
) -> Tensor:
    """Inside torch.func: the reference, which every transform sees through."""
    if group is not None:
        raise RuntimeError("nt_xent with group= does not work inside torch.func transforms")
    z1, z2 = contract.widened(z1), contract.widened(z2)
    return nt_xent_reference(z1, z2, temperature, normalize, weight, reduction)


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
        """`nt_xent(z1, z2, weight=weight)` with the module's settings."""
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
        """The settings that `print(module)` shows."""
        shown = ("temperature", "normalize", "reduction", "impl")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
