r"""SigLIP's loss: every pair of an image and a text is a question of its own, without the N x N logits.

    loss = 1/N sum_ij softplus( -y_ij (logit_scale <u_i, v_j> + logit_bias) ),    y_ij = 1 if i = j, else -1,
    u_i = image_i / |image_i|,    v_j = text_j / |text_j|

No row waits for a normaliser, so one pass over the pairs gives the loss and all gradients.

Letters: N pairs of this rank, M pairs of all ranks, D embedding.

Reference: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", arXiv:2303.15343, Sec. 3.2, Alg. 1.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.distributed import Group, gradient_factor
from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.two_towers import GlobalPairs, check_towers, number_beside, split_number


def siglip_loss_reference(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    reduction: str = "mean",
) -> Tensor:
    """The equation in plain torch, in the dtype of the towers: oracle, baseline and second derivatives."""
    if normalize:
        image, text = F.normalize(image, dim=1, eps=1e-12), F.normalize(text, dim=1, eps=1e-12)
    logits = image @ text.T * logit_scale + logit_bias  # [N, N]
    y = 2 * torch.eye(len(image), dtype=logits.dtype, device=logits.device) - 1
    loss = -F.logsigmoid(y * logits).sum(1)  # [N]
    loss = loss if weight is None else loss * weight
    if reduction != "mean":
        return loss if reduction == "none" else loss.sum()
    total = loss.numel() if weight is None else weight.sum()
    return loss.sum() / (total + (total == 0))


def _siglip_loss(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    weight: Tensor | None,  # [N]
    logit_scale: Tensor | None,  # []
    logit_bias: Tensor | None,  # []
    scale_number: float,
    bias_number: float,
    normalize: bool,
    average: bool,
    group: str,
    factor: int,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The global objective [] and, when wanted, dimage, dtext [N, D], dweight [N], dlogit_scale [], dlogit_bias []."""
    kernel, pairs = choose("siglip_loss", impl, image, text), GlobalPairs(image, text, group)
    scale, bias = number_beside(logit_scale, scale_number, image), number_beside(logit_bias, bias_number, image)
    dtype = torch.promote_types(image.dtype, torch.float32)
    if weight is None:
        all_weight = image.new_ones(len(pairs.first), dtype=dtype)
        sums = all_weight.new_full((), len(pairs.first)) if average else all_weight.new_ones(())
    else:
        (all_weight,) = pairs.gather(weight.to(dtype))
        sums = all_weight.sum() if average else all_weight.new_ones(())
    share = torch.where(sums == 0, 1, sums).reciprocal()
    coef = all_weight * (share * factor)
    loss, *gradients = kernel.forward(
        pairs.first, pairs.second, coef if with_grad else None, pairs.mine, scale, bias, normalize
    )
    (all_loss,) = pairs.gather(loss)
    value = (all_loss * all_weight).sum() * share
    if not with_grad:
        return value, None, None, None, None, None
    dimage, dtext, dscale, dbias = gradients
    dweight = None if weight is None else (loss - value if average else loss) * (share * factor)
    dlogit_scale, dlogit_bias = (
        None if tensor is None else rows.sum() for tensor, rows in ((logit_scale, dscale), (logit_bias, dbias))
    )
    return value, dimage, dtext, dweight, dlogit_scale, dlogit_bias


def _siglip_loss_rows(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    logit_scale: Tensor | None,  # []
    logit_bias: Tensor | None,  # []
    scale_number: float,
    bias_number: float,
    normalize: bool,
    group: str,
    impl: str,
) -> tuple[Tensor, None]:
    """Loss [N] of this rank's images; nothing is left for the backward pass, which computes the logits again."""
    kernel, pairs = choose("siglip_loss", impl, image, text), GlobalPairs(image, text, group)
    scale, bias = number_beside(logit_scale, scale_number, image), number_beside(logit_bias, bias_number, image)
    return kernel.forward(pairs.first, pairs.second, None, pairs.mine, scale, bias, normalize)[0], None


def _siglip_loss_rows_backward(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    upstream: Tensor,  # [N]
    logit_scale: Tensor | None,  # []
    logit_bias: Tensor | None,  # []
    scale_number: float,
    bias_number: float,
    normalize: bool,
    group: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dimage, dtext [N, D] and this rank's shares of dlogit_scale, dlogit_bias, of all ranks' objective."""
    kernel, pairs = choose("siglip_loss", impl, image, text), GlobalPairs(image, text, group)
    scale, bias = number_beside(logit_scale, scale_number, image), number_beside(logit_bias, bias_number, image)
    (coef,) = pairs.gather(upstream.to(torch.promote_types(image.dtype, torch.float32)))
    found = kernel.forward(pairs.first, pairs.second, coef, pairs.mine, scale, bias, normalize)
    return found[1], found[2], found[3].sum(), found[4].sum()


def _again(
    inputs: tuple[Tensor | None, ...],  # image, text, weight, logit_scale, logit_bias
    upstream: Tensor,
    reduction: str,
    options: tuple[Any, ...],
) -> list[Tensor | None]:
    """The gradients once more through the reference, so that they have gradients."""
    scale_number, bias_number, normalize, group = options
    if group:
        raise RuntimeError("siglip_loss with group= cannot be differentiated twice (create_graph=True)")

    def reference(
        image: Tensor, text: Tensor, weight: Tensor | None, logit_scale: Tensor | None, logit_bias: Tensor | None
    ) -> Tensor:
        scale = scale_number if logit_scale is None else logit_scale
        bias = bias_number if logit_bias is None else logit_bias
        image, text = contract.widened(image), contract.widened(text)
        return siglip_loss_reference(image, text, scale, bias, normalize, weight, reduction)

    return contract.differentiable_gradients(reference, inputs, upstream)


class _SigLIPLoss(torch.autograd.Function):
    """The objective; its gradients are made in the forward pass, the backward pass only multiplies them.

    `forward` takes ctx: for the form with `setup_context`, torch binds the arguments by name, 20 us a call.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _siglip_loss(*inputs)
        _SigLIPLoss.save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        """Keeps what `backward` needs; also the set-up of the registered op."""
        ctx.save_for_backward(*inputs[:5], *output[1:])
        ctx.set_materialize_grads(False)
        ctx.options = (*inputs[5:8], inputs[9])
        ctx.reduction = "mean" if inputs[8] else "sum"

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        if upstream[0] is None:
            return (None,) * 13
        if torch.is_grad_enabled():
            return *_again(saved[:5], upstream[0], ctx.reduction, ctx.options), *(None,) * 8
        # Out of place, for the graph may be walked again; autograd casts to the dtypes of the inputs.
        wanted = zip(saved[5:], ctx.needs_input_grad, strict=False)
        return *(gradient * upstream[0] if need else None for gradient, need in wanted), *(None,) * 8


class _SigLIPLossRows(torch.autograd.Function):
    """The loss of each image's row; the backward pass computes the logits again."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _siglip_loss_rows(*inputs)
        _SigLIPLossRows.save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        """Keeps what `backward` needs; also the set-up of the registered op."""
        ctx.save_for_backward(*inputs[:4])
        ctx.set_materialize_grads(False)
        ctx.options, ctx.impl = inputs[4:8], inputs[8]

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        image, text, logit_scale, logit_bias = ctx.saved_tensors
        if upstream[0] is None:
            return (None,) * 9
        if torch.is_grad_enabled():
            inputs = (image, text, None, logit_scale, logit_bias)
            dimage, dtext, _, dscale, dbias = _again(inputs, upstream[0], "none", ctx.options)
            return dimage, dtext, dscale, dbias, *(None,) * 5
        traced = contract.under_tracing()
        run: Any = torch.ops.ssl_fast.siglip_loss_rows_backward if traced else _siglip_loss_rows_backward
        found = run(image, text, upstream[0], logit_scale, logit_bias, *ctx.options, ctx.impl)
        needed = zip(found, ctx.needs_input_grad, strict=False)
        return *(gradient if need else None for gradient, need in needed), *(None,) * 5


def _wide(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def _fake(image: Tensor, *others: Any) -> tuple[Tensor, ...]:
    wanted = (image, *others[:4]) if others[-1] else (None,) * 5
    return _wide(image), *(image.new_empty(0) if t is None else _wide(image, *t.shape) for t in wanted)


def _fake_rows(image: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _wide(image, len(image)), image.new_empty(0)


def _fake_rows_backward(image: Tensor, text: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return _wide(image, *image.shape), _wide(image, *text.shape), _wide(image), _wide(image)


_COMMON = "Tensor? logit_scale, Tensor? logit_bias, float scale_number, float bias_number, bool normalize"
contract.register(
    f"siglip_loss(Tensor image, Tensor text, Tensor? weight, {_COMMON}, bool average, str group, int factor, str impl,"
    " bool with_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _siglip_loss,
    _fake,
    _SigLIPLoss,
)
contract.register(
    f"siglip_loss_rows(Tensor image, Tensor text, {_COMMON}, str group, str impl) -> (Tensor, Tensor)",
    _siglip_loss_rows,
    _fake_rows,
    _SigLIPLossRows,
)
contract.register(
    f"siglip_loss_rows_backward(Tensor image, Tensor text, Tensor upstream, {_COMMON}, str group, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _siglip_loss_rows_backward,
    _fake_rows_backward,
)


def siglip_loss(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    *,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """SigLIP's sigmoid loss over all pairs of a batch, in memory O(N D); loss and gradients in one pass.

    Rows are compared with fp32 accumulation (fp64 for fp64), under autocast too; the loss is at least fp32 and
    gradients come in the dtype of their input. Towers of two dtypes are compared in the wider one. N = 0 gives 0 and
    empty gradients. A zero row has similarity 0 with all others and a finite gradient.

    Args:
        image: embeddings of the images, [N, D]; row i of both towers belongs to pair i.
        text: embeddings of the texts, [N, D].
        logit_scale: what similarities are multiplied by: positive number, or a tensor of shape [] that may need a
            gradient. It is the factor itself, `model.logit_scale.exp()`, not its logarithm.
        logit_bias: what is added to them, -10 at first in the paper: number or tensor of shape [].
        normalize: scale rows to unit length first (norms are clamped at 1e-12). False: rows are taken as they are.
        weight: weights >= 0 of the images' rows, [N]; "mean" is then the weighted mean. They may need a gradient.
        group: process group whose ranks' pairs are all compared, local batches may differ in size. Every rank returns
            the global value; gradients are exact without any communication of gradients. None: this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the
            number of ranks. "sum" when they are added.
        reduction: "mean" over the images (of all ranks) of their sums over all texts, "sum", or "none": [N], the sum of
            each local image over all texts times its weight. Under "none" `grad_reduce` plays no part:
            `distributed.global_mean` applies it.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, or a second derivative with `group`.

    Example:
        >>> image, text = torch.eye(4), torch.eye(4)
        >>> round(siglip_loss(image, text, 2.0, -1.0).item(), 4)  # log(1 + e^-1) + 3 log(1 + e^-1)
        1.253

    Reference: Zhai et al. 2023, arXiv:2303.15343, Alg. 1.
    """
    image, text = check_towers(image, text)
    contract.check_weight(weight, len(image))
    contract.check_reduction(reduction)
    check_impl("siglip_loss", impl)
    factor = gradient_factor(group, grad_reduce)
    scale, scale_number = split_number("logit_scale", logit_scale, True)
    bias, bias_number = split_number("logit_bias", logit_bias, False)
    if contract.under_functorch():
        if group is not None:
            raise RuntimeError("siglip_loss with group= does not work inside torch.func transforms")
        image, text = contract.widened(image), contract.widened(text)
        return siglip_loss_reference(image, text, logit_scale, logit_bias, normalize, weight, reduction)
    name = "" if group is None else group.group_name
    shared = (scale, bias, scale_number, bias_number, normalize)
    recorded = contract.wants_gradient(image, text, weight, scale, bias)
    if reduction == "none":
        inputs = (image, text, *shared, name, impl)
        loss = contract.call(_SigLIPLossRows, _siglip_loss_rows, "siglip_loss_rows", recorded, inputs)
        return loss if weight is None else loss * weight
    whole = (image, text, weight, *shared, reduction == "mean", name, factor, impl, recorded)
    return contract.call(_SigLIPLoss, _siglip_loss, "siglip_loss", recorded, whole)


class SigLIPLoss(nn.Module):
    """`siglip_loss` as a module; the arguments are those of the function. Scale and bias are given at each call."""

    def __init__(
        self,
        *,
        normalize: bool = True,
        group: Group = None,
        grad_reduce: str = "mean",
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.normalize, self.impl = normalize, impl
        self.group, self.grad_reduce, self.reduction = group, grad_reduce, reduction

    def forward(
        self,
        image: Tensor,  # [N, D]
        text: Tensor,  # [N, D]
        logit_scale: float | Tensor,
        logit_bias: float | Tensor,
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`siglip_loss(image, text, logit_scale, logit_bias, weight=weight)` with the module's settings."""
        return siglip_loss(
            image,
            text,
            logit_scale,
            logit_bias,
            normalize=self.normalize,
            weight=weight,
            group=self.group,
            grad_reduce=self.grad_reduce,
            reduction=self.reduction,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """The settings that `print(module)` shows."""
        shown = ("normalize", "reduction", "impl")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
