r"""Cross-entropy over many classes with a margin on the target, without logits [N, C]: the engine of the losses.

    loss_i = log( exp(s phi(c_iy)) + sum_{j != y} exp(s f(c_ij)) ) - s phi(c_iy)
           = softplus( log sum_{j != y} exp(s f(c_ij)) - s phi(c_iy) )

with c_ij the cosine of sample i and class j (of the nearest of the class's S centres), y the sample's class, s the
scale, phi the margin (`ops/margins.py`) and f(c) = c, or c (t + c) for hard negatives c > cos(theta_y + m).
The targets' cosines come first, as one product per sample; then the classes are walked a tile at a time.

Letters: N samples, C classes, S centres of a class, D embedding; M samples of all ranks.

References: Deng et al. 2019, "ArcFace", arXiv:1801.07698, Eq. 3-4; Huang et al. 2020, "CurricularFace",
arXiv:2004.00288, Eq. 5-7.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.distributed import Group, all_gather_rows, gather_sizes, group_by_name
from ssl_fast.ops import contract
from ssl_fast.ops.class_panels import NEVER, Negatives, row_weights, softplus
from ssl_fast.ops.dispatch import choose
from ssl_fast.ops.margins import Margin, margined
from ssl_fast.ops.objective import Objective, Rows, wide

ELSEWHERE, IGNORED = -1, -2  # in place of a target: a class of another rank, and none


def margin_softmax_reference(
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
    reduction: str = "mean",
) -> Tensor:
    """The equation in plain torch, in the dtype of x: oracle and baseline. Differentiable any number of times."""
    if normalize:
        x, weight = F.normalize(x, dim=1, eps=1e-12), F.normalize(weight, dim=-1, eps=1e-12)
    cosine = x @ weight.flatten(0, -2).to(x.dtype).T  # [N, C S]
    if weight.dim() == 3:
        cosine = cosine.view(len(x), *weight.shape[:2]).max(2).values
    kept = labels != ignore_index
    own = torch.where(kept, labels, 0)[:, None]  # [N, 1]
    target = cosine.gather(1, own).squeeze(1)
    phi, _ = margined(target, margin, row_margins)
    if hardness is not None:
        hard = cosine > _threshold(target, margin)[:, None]
        cosine = torch.where(hard, cosine * (hardness + cosine), cosine)
    logits = cosine.scatter(1, own, phi[:, None]) * scale
    loss = torch.where(kept, logits.logsumexp(1) - phi * scale, 0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / kept.sum().clamp_min(1)


def _threshold(
    target: Tensor,  # [N] cosines
    margin: Margin,
) -> Tensor:
    """cos(theta_y + m): a negative above it is hard."""
    return margined(target.detach(), margin._replace(monotone=False, exact=True))[0]


def target_cosine(
    x: Tensor,  # [M, D]
    weight: Tensor,  # [C, S, D]
    target: Tensor,  # [M] a class of weight, or negative
    normalize: bool = True,
) -> Tensor:
    """Cosine of each sample with the nearest centre of its class, [M]; 0 where its class is not in weight."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if len(weight) == 0:
        return x.new_zeros(len(x), dtype=dtype)
    centres = weight.detach()[target.clamp_min(0)].to(dtype)  # [M, S, D]
    rows = x.detach().to(dtype)
    if normalize:
        rows, centres = F.normalize(rows, dim=1, eps=1e-12), F.normalize(centres, dim=2, eps=1e-12)
    cosine = (centres * rows[:, None]).sum(2).amax(1)
    return torch.where(target >= 0, cosine, 0)


def _rule(margin: list[float], flags: list[bool]) -> Margin:
    m1, m2, m3 = margin
    return Margin(m1, m2, m3, monotone=flags[0], exact=flags[1])


class _Problem:
    """All ranks' rows against this rank's classes, and what the margin makes of the targets."""

    def __init__(
        self,
        x: Tensor,  # [N, D]
        weight: Tensor,  # [C, S, D]
        scale: Tensor | None,  # []
        target: Tensor,  # [M]
        row_margins: Tensor | None,  # [2, M]
        hardness: Tensor | None,  # []
        scale_value: float,
        margin: list[float],
        flags: list[bool],
        group: str,
        impl: str,
    ) -> None:
        self.group: Group = group_by_name(group) if group else None
        self.kernel = choose("margin_softmax", impl, x, weight)
        self.sizes = gather_sizes(len(x), self.group, x.device)
        self.x, self.weight, self.target = all_gather_rows(x, self.group, self.sizes), weight.detach(), target
        self.normalize = flags[2]
        dtype = torch.promote_types(x.dtype, torch.float32)
        self.scale = scale_value if scale is None else scale.detach().to(x.device, dtype)
        rule = _rule(margin, flags)
        cosine = self._sum(target_cosine(self.x, self.weight, target, self.normalize))
        self.phi, self.slope = margined(cosine, rule, row_margins)
        threshold = None if hardness is None else _threshold(cosine, rule)
        self.negatives = Negatives(self.scale, threshold, 0.0 if hardness is None else hardness.detach().to(dtype))
        self.kept = (target != IGNORED).to(dtype)  # [M]

    def _sum(self, values: Tensor) -> Tensor:
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
        return values

    def mine(self, values: Tensor) -> Tensor:
        """This rank's part of numbers that every rank has, [M, ...] -> [N, ...]."""
        return values if self.group is None else torch.split(values, self.sizes)[self.group.rank()]

    def log_sums(self, row_weight: Tensor | None) -> tuple[Tensor, Any, Any, Any]:
        """Log-normalisers over all ranks' classes [M]; alone and with row_weight [M], the gradients in the same go."""
        rows = (self.negatives, self.normalize, self.phi, self.slope)
        lse, *gradients = self.kernel.forward(self.x, self.weight, self.target, *rows, row_weight)
        return lse if self.group is None else self._joined(lse), *gradients

    def _joined(self, lse: Tensor) -> Tensor:
        """Over the ranks' classes. Float64 holds exp(s (f - 2)) for all s up to 230: no round for a maximum."""
        if self.normalize:
            offset = torch.as_tensor(self.scale, device=lse.device).double() * 2
        else:
            offset = lse.to(torch.float64, copy=True)
            dist.all_reduce(offset, dist.ReduceOp.MAX, self.group)
            offset = offset.clamp_min(NEVER)
        return (self._sum((lse.double() - offset).exp()).log() + offset).clamp_min(NEVER).to(lse.dtype)

    def weights(self, lse: Tensor, row_weight: Tensor) -> tuple[Tensor, Tensor]:
        return row_weights(lse, self.phi, self.slope, self.scale, row_weight)

    def gradients(self, lse: Tensor, row_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dx [M, D], dweight and mean [M] of sum_i row_weight_i loss_i, over this rank's classes alone."""
        pulls = self.weights(lse, row_weight)
        found: tuple[Tensor, Tensor, Tensor] = self.kernel.backward(
            self.x, self.weight, self.target, self.negatives, self.normalize, lse, *pulls
        )
        return found

    def finish(
        self,
        lse: Tensor,  # [M]
        row_weight: Tensor,  # [M]
        gradients: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's dx [N, D], its dweight, and its share of dscale []."""
        dx, dweight, mean = gradients
        coef, _ = self.weights(lse, row_weight)
        dscale = mean.sum() - self.mine(coef * self.phi).sum()
        return self._scattered(dx), dweight, dscale

    def _scattered(self, dx: Tensor) -> Tensor:
        """The sum over the ranks of dx [M, D], this rank's rows of it [N, D]: half the traffic of an all-reduce."""
        if self.group is None:
            return dx
        longest = max(self.sizes)
        parts = [F.pad(part, (0, 0, 0, longest - len(part))) for part in torch.split(dx, self.sizes)]
        mine = dx.new_empty(longest, dx.shape[1])
        dist.reduce_scatter_tensor(mine, torch.cat(parts), group=self.group)
        return mine[: self.sizes[self.group.rank()]]


def _margin_softmax(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    scale: Tensor | None,  # []
    target: Tensor,  # [M]
    row_margins: Tensor | None,  # [2, M]
    hardness: Tensor | None,  # []
    scale_value: float,
    margin: list[float],
    flags: list[bool],
    group: str,
    impl: str,
    average: bool,
    factor: int,
    with_grad: bool,
) -> tuple[Tensor | None, ...]:
    """The mean or sum over all ranks' rows; when wanted dx [N, D], dweight and this rank's dscale."""
    if not group and x.numel() and weight.numel():
        kernel = choose("margin_softmax", impl, x, weight)
        if hasattr(kernel, "objective"):
            number = scale_value if scale is None else float(scale)
            found: tuple[Tensor | None, ...]
            rows = (x, weight, target, row_margins, hardness)
            found = kernel.objective(*rows, number, margin, *flags, average, with_grad, scale is not None)
            return found
    classes = weight if weight.dim() == 3 else weight[:, None]
    problem = _Problem(x, classes, scale, target, row_margins, hardness, scale_value, margin, flags, group, impl)
    row_weight = problem.kept / problem.kept.sum().clamp_min(1) if average else problem.kept
    at_once = with_grad and problem.group is None
    lse, *gradients = problem.log_sums(row_weight if at_once else None)
    loss = (softplus(lse - problem.scale * problem.phi) * row_weight).sum()
    if not with_grad:
        return loss, None, None, None
    if not at_once:
        gradients = list(problem.gradients(lse, row_weight))
    dx, dweight, dscale = problem.finish(lse, row_weight, tuple(gradients))
    # The classes of this rank are on no other: their gradient is whole, and nobody averages it.
    dweight = dweight.view(weight.shape)
    return loss, dx * factor if factor > 1 else dx, dweight, None if scale is None else dscale * factor


def _margin_softmax_rows(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Loss [N] of this rank's rows, log-normaliser [M] of all rows."""
    problem = _Problem(*inputs[:-1])
    lse = problem.log_sums(None)[0]
    loss = softplus(lse - problem.scale * problem.phi) * problem.kept
    return problem.mine(loss).clone(), lse


def _margin_softmax_rows_backward(upstream: Tensor, lse: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx [N, D], dweight [C, S, D] and this rank's dscale, of what all ranks make of their rows' losses [N]."""
    problem = _Problem(*inputs[:-1])
    gathered = all_gather_rows(upstream.to(lse.dtype), problem.group, problem.sizes)
    row_weight = gathered * problem.kept
    dx, dweight, dscale = problem.finish(lse, row_weight, problem.gradients(lse, row_weight))
    # `factor` is in the upstream gradient already, for parameters that will be averaged. The classes will not.
    return dx, dweight / inputs[-1] if inputs[-1] > 1 else dweight, None if inputs[2] is None else dscale


def _equation(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    target: Tensor,
    row_margins: Tensor | None,
    hardness: Tensor | None,
    scale_value: float,
    margin: list[float],
    flags: list[bool],
    group: str,
    impl: str,
    average: bool | None,
    factor: int,
) -> Tensor:
    """The reference in at least fp32, on targets for labels; [N] where `average` is None."""
    x = contract.widened(x)
    return margin_softmax_reference(
        x,
        weight.to(x.dtype),
        target,
        _rule(margin, flags),
        scale=scale_value if scale is None else scale,
        row_margins=row_margins,
        hardness=hardness,
        ignore_index=IGNORED,
        normalize=flags[2],
        reduction="none" if average is None else "mean" if average else "sum",
    )


def _equation_rows(*inputs: Any) -> Tensor:
    arguments: tuple[Any, ...] = (*inputs[:-1], None, inputs[-1])
    return _equation(*arguments)


def _fake_rows(x: Tensor, weight: Tensor, scale: Tensor | None, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return wide(x, len(x)), wide(x, target.shape[0])  # which torch.compile may not know: `len` would ask


_TENSORS = "Tensor x, Tensor weight, Tensor? scale, Tensor target, Tensor? row_margins, Tensor? hardness"
_OPTIONS = "float scale_value, float[] margin, bool[] flags, str group, str impl"
OBJECTIVE = Objective(
    "margin_softmax",
    _TENSORS,
    f"{_OPTIONS}, bool average, int factor",
    _margin_softmax,
    _equation,
    num_gradients=3,
    title="a margin loss",
)
ROWS = Rows(
    "margin_softmax_rows",
    _TENSORS,
    f"{_OPTIONS}, int factor",
    _margin_softmax_rows,
    _margin_softmax_rows_backward,
    _equation_rows,
    _fake_rows,
    num_gradients=3,
    title="a margin loss",
)
