r"""CLIP's loss: each image against all texts and each text against all images, without the N x N logits.

    loss = 1/2N sum_i [ -log( exp(s_ii) / sum_j exp(s_ij) ) - log( exp(s_ii) / sum_j exp(s_ji) ) ],
    s_ij = logit_scale <u_i, v_j>,    u_i = image_i / |image_i|,    v_j = text_j / |text_j|

Each term with its positive left out of the sum, as softplus(log sum_{j != i} exp(s_ij) - s_ii), keeps its digits when
the towers align. One direction alone is InfoNCE among the keys of a batch (`info_nce` without a queue).

Letters: N pairs of this rank, M pairs of all ranks, D embedding, S directions (1: image to text; 2: and back).

Reference: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
arXiv:2103.00020, Fig. 3.
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


def clip_loss_reference(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    logit_scale: float | Tensor,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    reduction: str = "mean",
    sides: int = 2,
) -> Tensor:
    """The equation in plain torch, in the dtype of the towers: oracle, baseline and second derivatives."""
    if normalize:
        image, text = F.normalize(image, dim=1, eps=1e-12), F.normalize(text, dim=1, eps=1e-12)
    logits = image @ text.T * logit_scale  # [N, N]
    loss = torch.stack([logits.logsumexp(1 - side) - logits.diagonal() for side in range(sides)])  # [S, N]
    loss = loss if weight is None else loss * weight
    if reduction != "mean":
        return loss if reduction == "none" else loss.sum()
    total = loss.numel() if weight is None else weight.sum() * sides
    return loss.sum() / (total + (total == 0))


def _clip_loss(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    weight: Tensor | None,  # [N]
    logit_scale: Tensor | None,  # []
    scale_number: float,
    normalize: bool,
    sides: int,
    average: bool,
    group: str,
    factor: int,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor | None, ...]:
    """The global objective [] and, when wanted, dimage [N, D], dtext [N, D], dweight [N], dlogit_scale []."""
    kernel = choose("clip_loss", impl, image, text)
    scale = number_beside(logit_scale, scale_number, image)
    if not group and image.numel() and hasattr(kernel, "objective"):
        found: tuple[Tensor | None, ...]
        wanted = (with_grad, logit_scale is not None)
        found = kernel.objective(image, text, weight, float(scale), normalize, sides, average, *wanted)
        return found
    pairs = GlobalPairs(image, text, group)
    loss, local_log_l = kernel.forward(pairs.first, pairs.second, pairs.mine, scale, normalize, sides)
    if weight is None:
        all_loss, log_l = _gathered(pairs, loss, local_log_l)
        total = max(all_loss.numel(), 1) if average else 1
        value = (all_loss.sum() / total).to(loss.dtype)
        coef = torch.full_like(all_loss, factor / total, dtype=loss.dtype) if with_grad else None
    else:
        all_loss, log_l, all_weight = _gathered(pairs, loss, local_log_l, weight.to(loss.dtype)[None])
        all_loss, all_weight = all_loss.to(loss.dtype), all_weight.to(loss.dtype)
        sums = all_weight.sum() * sides if average else all_weight.new_ones(())
        share = torch.where(sums == 0, 1, sums).reciprocal()
        value = (all_loss * all_weight).sum() * share
        coef = (all_weight * (share * factor)).expand_as(all_loss)
    if coef is None or not with_grad:
        return value, None, None, None, None
    dimage, dtext, dscale = kernel.backward(pairs.first, pairs.second, coef, log_l, pairs.mine, scale, normalize)
    dlogit_scale = None if logit_scale is None else dscale.sum()
    if weight is None:
        return value, dimage, dtext, None, dlogit_scale
    above = loss - value if average else loss
    return value, dimage, dtext, above.sum(0) * (share * factor), dlogit_scale


def _gathered(pairs: GlobalPairs, *local: Tensor) -> list[Tensor]:
    """Numbers per direction and local pair, each [S, N], as numbers over all pairs [S, M]: one message."""
    if pairs.group is None:
        return list(local)
    rows = iter(pairs.gather(*(row.double() for columns in local for row in columns)))
    return [torch.stack([next(rows) for _ in columns]) for columns in local]


def _clip_loss_rows(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    logit_scale: Tensor | None,  # []
    scale_number: float,
    normalize: bool,
    sides: int,
    group: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Loss [S, N] and log-normaliser [S, N], float64, of this rank's pairs."""
    kernel, pairs = choose("clip_loss", impl, image, text), GlobalPairs(image, text, group)
    scale = number_beside(logit_scale, scale_number, image)
    loss, log_l = kernel.forward(pairs.first, pairs.second, pairs.mine, scale, normalize, sides)
    return loss, log_l


def _clip_loss_rows_backward(
    upstream: Tensor,  # [S, N]
    local_log_l: Tensor,  # [S, N] float64
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    logit_scale: Tensor | None,  # []
    scale_number: float,
    normalize: bool,
    sides: int,
    group: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dimage [N, D], dtext [N, D], this rank's share of dlogit_scale, of what all ranks make of their losses."""
    kernel, pairs = choose("clip_loss", impl, image, text), GlobalPairs(image, text, group)
    scale = number_beside(logit_scale, scale_number, image)
    coef, log_l = _gathered(pairs, upstream, local_log_l)
    coef = coef.to(torch.promote_types(image.dtype, torch.float32))
    dimage, dtext, dscale = kernel.backward(pairs.first, pairs.second, coef, log_l, pairs.mine, scale, normalize)
    return dimage, dtext, None if logit_scale is None else dscale.sum()


def _equation(
    image: Tensor,
    text: Tensor,
    weight: Tensor | None,
    logit_scale: Tensor | None,
    scale_number: float,
    normalize: bool,
    sides: int,
    average: bool | None,
    *rest: Any,
) -> Tensor:
    """The reference in at least fp32; [S, N] where `average` is None."""
    image, text = contract.widened(image), contract.widened(text)
    scale = scale_number if logit_scale is None else logit_scale
    reduction = "none" if average is None else "mean" if average else "sum"
    return clip_loss_reference(image, text, scale, normalize, weight, reduction, sides)


def _equation_rows(
    image: Tensor, text: Tensor, logit_scale: Tensor | None, number: float, normalize: bool, sides: int, *rest: Any
) -> Tensor:
    return _equation(image, text, None, logit_scale, number, normalize, sides, None)


def _fake_rows(
    image: Tensor, text: Tensor, logit_scale: Tensor | None, number: float, normalize: bool, sides: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    loss = wide(image, sides, len(image))
    return loss, torch.empty_like(loss, dtype=torch.float64)


_NUMBERS = "float scale_number, bool normalize, int sides"
_OBJECTIVE = Objective(
    "clip_loss",
    "Tensor image, Tensor text, Tensor? weight, Tensor? logit_scale",
    f"{_NUMBERS}, bool average, str group, int factor, str impl",
    _clip_loss,
    _equation,
    num_gradients=4,
    title="the loss of two towers",
)
_ROWS = Rows(
    "clip_loss_rows",
    "Tensor image, Tensor text, Tensor? logit_scale",
    f"{_NUMBERS}, str group, str impl",
    _clip_loss_rows,
    _clip_loss_rows_backward,
    _equation_rows,
    _fake_rows,
    num_gradients=3,
    title="the loss of two towers",
)


def clip_loss(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    logit_scale: float | Tensor,
    *,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """CLIP's symmetric cross-entropy over the pairs of a batch, in memory O(N D).

    Rows are compared with fp32 accumulation (fp64 for fp64), under autocast too; the loss is at least fp32 and
    gradients come in the dtype of their input. Towers of two dtypes are compared in the wider one. N = 0 gives 0 and
    empty gradients; N = 1 has no negative and gives 0. A zero row has similarity 0 with all others and a finite
    gradient.

    Args:
        image: embeddings of the images, [N, D]; row i of both towers belongs to pair i.
        text: embeddings of the texts, [N, D].
        logit_scale: what similarities are multiplied by, 1 / temperature: positive number, or a tensor of shape [] that
            may need a gradient. It is the factor itself, `model.logit_scale.exp()`, not its logarithm.
        normalize: scale rows to unit length first (norms are clamped at 1e-12). False: rows are taken as they are.
        weight: weights >= 0 of the pairs, [N]; "mean" is then the weighted mean. They may need a gradient.
        group: process group whose ranks' rows are all negatives, local batches may differ in size. Every rank returns
            the global value; gradients are exact without any communication of gradients. None: this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the
            number of ranks. "sum" when they are added.
        reduction: "mean" or "sum" over both directions of all pairs (of all ranks), or "none": [2, N], the loss of each
            local image among the texts and of each text among the images, times the pair's weight. Under "none"
            `grad_reduce` plays no part: `distributed.global_mean` applies it.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [2, N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, or a second derivative with `group`.

    Example:
        >>> image, text = torch.eye(4), torch.eye(4)
        >>> round(clip_loss(image, text, 1.0).item(), 4)  # log(e + 3) - 1
        0.7437

    Reference: Radford et al. 2021, arXiv:2103.00020, Fig. 3.
    """
    image, text = check_towers(image, text)
    options = (normalize, weight, group, grad_reduce, reduction, impl)
    return contrast(image, text, split_number("logit_scale", logit_scale, True), 2, *options)


def contrast(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D], in the dtype of image
    logit_scale: tuple[Tensor | None, float],
    sides: int,
    normalize: bool,
    weight: Tensor | None,  # [N]
    group: Group,
    grad_reduce: str,
    reduction: str,
    impl: str,
) -> Tensor:
    """The loss in one direction (image to text) or two: what `clip_loss` and `info_nce` among a batch's keys share."""
    contract.check_weight(weight, image)
    contract.check_reduction(reduction)
    check_impl("clip_loss", impl)
    factor = gradient_factor(group, grad_reduce)
    tensor, number = logit_scale
    name = "" if group is None else group.group_name
    if reduction == "none":
        loss = _ROWS((image, text, tensor), (number, normalize, sides, name, impl))
        return loss if weight is None else loss * weight
    options = (number, normalize, sides, reduction == "mean", name, factor, impl)
    return _OBJECTIVE((image, text, weight, tensor), options)


class CLIPLoss(LossModule):
    """`clip_loss` as a module; the arguments are those of the function. The model's scale is given at each call."""

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
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`clip_loss(image, text, logit_scale, weight=weight)` with the module's settings."""
        return clip_loss(image, text, logit_scale, weight=weight, **self.settings)
