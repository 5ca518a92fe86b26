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
from torch import Tensor

from ssl_fast.distributed import Group, gradient_factor
from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.objective import Objective, Rows, wide
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
) -> tuple[Tensor | None, ...]:
    """The global objective [] and, when wanted, dimage, dtext [N, D], dweight [N], dlogit_scale [], dlogit_bias []."""
    kernel = choose("siglip_loss", impl, image, text)
    scale, bias = number_beside(logit_scale, scale_number, image), number_beside(logit_bias, bias_number, image)
    if not group and image.numel() and hasattr(kernel, "objective"):
        found: tuple[Tensor | None, ...]
        wanted = (with_grad, logit_scale is not None, logit_bias is not None)
        found = kernel.objective(image, text, weight, float(scale), float(bias), normalize, average, *wanted)
        return found
    pairs = GlobalPairs(image, text, group)
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
    upstream: Tensor,  # [N]
    kept: Tensor | None,
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    logit_scale: Tensor | None,  # []
    logit_bias: Tensor | None,  # []
    scale_number: float,
    bias_number: float,
    normalize: bool,
    group: str,
    impl: str,
) -> tuple[Tensor | None, ...]:
    """dimage, dtext [N, D] and this rank's shares of dlogit_scale, dlogit_bias, of all ranks' objective."""
    kernel, pairs = choose("siglip_loss", impl, image, text), GlobalPairs(image, text, group)
    scale, bias = number_beside(logit_scale, scale_number, image), number_beside(logit_bias, bias_number, image)
    (coef,) = pairs.gather(upstream.to(torch.promote_types(image.dtype, torch.float32)))
    _, dimage, dtext, *shares = kernel.forward(pairs.first, pairs.second, coef, pairs.mine, scale, bias, normalize)
    numbers = zip((logit_scale, logit_bias), shares, strict=True)
    return dimage, dtext, *(None if number is None else share.sum() for number, share in numbers)


def _equation(
    image: Tensor,
    text: Tensor,
    weight: Tensor | None,
    logit_scale: Tensor | None,
    logit_bias: Tensor | None,
    scale_number: float,
    bias_number: float,
    normalize: bool,
    average: bool | None,
    *rest: Any,
) -> Tensor:
    """The reference in at least fp32; [N] where `average` is None."""
    scale = scale_number if logit_scale is None else logit_scale
    bias = bias_number if logit_bias is None else logit_bias
    image, text = contract.widened(image), contract.widened(text)
    reduction = "none" if average is None else "mean" if average else "sum"
    return siglip_loss_reference(image, text, scale, bias, normalize, weight, reduction)


def _equation_rows(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | None,
    logit_bias: Tensor | None,
    scale_number: float,
    bias_number: float,
    normalize: bool,
    *rest: Any,
) -> Tensor:
    return _equation(image, text, None, logit_scale, logit_bias, scale_number, bias_number, normalize, None)


def _fake_rows(image: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return wide(image, len(image)), image.new_empty(0)


_NUMBERS = "float scale_number, float bias_number, bool normalize"
_OBJECTIVE = Objective(
    "siglip_loss",
    "Tensor image, Tensor text, Tensor? weight, Tensor? logit_scale, Tensor? logit_bias",
    f"{_NUMBERS}, bool average, str group, int factor, str impl",
    _siglip_loss,
    _equation,
    num_gradients=5,
)
_ROWS = Rows(
    "siglip_loss_rows",
    "Tensor image, Tensor text, Tensor? logit_scale, Tensor? logit_bias",
    f"{_NUMBERS}, str group, str impl",
    _siglip_loss_rows,
    _siglip_loss_rows_backward,
    _equation_rows,
    _fake_rows,
    num_gradients=4,
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
    contract.check_weight(weight, image)
    contract.check_reduction(reduction)
    check_impl("siglip_loss", impl)
    factor = gradient_factor(group, grad_reduce)
    scale, scale_number = split_number("logit_scale", logit_scale, True)
    bias, bias_number = split_number("logit_bias", logit_bias, False)
    name = "" if group is None else group.group_name
    if reduction == "none":
        loss = _ROWS((image, text, scale, bias), (scale_number, bias_number, normalize, name, impl))
        return loss if weight is None else loss * weight
    options = (scale_number, bias_number, normalize, reduction == "mean", name, factor, impl)
    return _OBJECTIVE((image, text, weight, scale, bias), options)


class SigLIPLoss(LossModule):
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
        super().__init__(normalize=normalize, group=group, grad_reduce=grad_reduce, reduction=reduction, impl=impl)

    def forward(
        self,
        image: Tensor,  # [N, D]
        text: Tensor,  # [N, D]
        logit_scale: float | Tensor,
        logit_bias: float | Tensor,
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`siglip_loss(image, text, logit_scale, logit_bias, weight=weight)` with the module's settings."""
        return siglip_loss(image, text, logit_scale, logit_bias, weight=weight, **self.settings)
