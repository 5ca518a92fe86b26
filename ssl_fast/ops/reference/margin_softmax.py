"""Margin softmax in plain torch, with the interface of the fused kernels and in their memory.

Two walks over the classes, a panel at a time: the normalisers, then the gradients, for which the cosines are computed
again. Memory O(M D + C D).

Letters: M rows, C classes of S centres each, B classes of a panel, D embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_fast.ops.class_panels import NEVER, Negatives, panels, row_weights


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def forward(
    x: Tensor,  # [M, D]
    weight: Tensor,  # [C, S, D]
    target: Tensor,  # [M] int64; a number outside [0, C) is no target
    negatives: Negatives,
    normalize: bool,
    phi: Tensor,  # [M] target logits over scale
    slope: Tensor,  # [M] their derivatives
    row_weight: Tensor | None,  # [M]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Log-normaliser of the negatives [M]; with row_weight also dx, dweight, mean [M] of the weighted sum of losses."""
    with torch.autocast(x.device.type, enabled=False):
        classes = _Classes(x, weight, target, normalize)
        lse = classes.log_sums(negatives)
        if row_weight is None:
            return lse, None, None, None
        coef, pull = row_weights(lse, phi, slope, negatives.scale, row_weight)
        return lse, *classes.gradients(negatives, lse, coef, pull)


def backward(
    x: Tensor,  # [M, D]
    weight: Tensor,  # [C, S, D]
    target: Tensor,  # [M]
    negatives: Negatives,
    normalize: bool,
    lse: Tensor,  # [M]
    coef: Tensor,  # [M]
    pull: Tensor,  # [M]
) -> tuple[Tensor, Tensor, Tensor]:
    """dx [M, D], dweight [C, S, D], and per row coef sum_j p_j f_j [M], for normalisers that are known."""
    with torch.autocast(x.device.type, enabled=False):
        return _Classes(x, weight, target, normalize).gradients(negatives, lse, coef, pull)


@dataclass
class _Classes:
    """Rows against classes: x [M, D], weight [C, S, D], target [M] (outside [0, C): none)."""

    x: Tensor
    weight: Tensor
    target: Tensor
    normalize: bool

    def __post_init__(self) -> None:
        self.dtype = torch.promote_types(self.x.dtype, torch.float32)
        self.unit_x, self.x_norm = self._unit(self.x)

    def _unit(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.detach().to(self.dtype)
        norm = rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return (rows / norm, norm) if self.normalize else (rows, norm)

    def panels(self) -> Iterator["_Panel"]:
        """The classes, some at a time."""
        (C, S, _), itemsize = self.weight.shape, self.unit_x.element_size()
        for begin, end in panels(len(self.x), C, S, itemsize):
            yield _Panel(self, begin, end)

    def log_sums(self, negatives: Negatives) -> Tensor:
        """Log of the sum over all classes but the target, [M]; about -1e30 where there is none."""
        lse = torch.full((len(self.x),), NEVER, dtype=self.dtype, device=self.x.device)
        for panel in self.panels():
            lse = _add_sums(panel.cosine, negatives, lse)
        return lse

    def gradients(
        self,
        negatives: Negatives,
        lse: Tensor,  # [M]
        coef: Tensor,  # [M] weight of each row's negatives
        pull: Tensor,  # [M] weight of its target's cosine
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dx [M, D], dweight [C, S, D] and sum_j coef p f [M]."""
        dz = torch.zeros_like(self.unit_x)
        dweight = torch.zeros(self.weight.shape, dtype=self.dtype, device=self.x.device)
        mean = torch.zeros_like(lse)
        for panel in self.panels():
            mean += _weigh_(panel.cosine, negatives, lse, coef)
            panel.pull_targets_(pull)
            dz.addmm_(panel.cosine, panel.unit)
            dw = (panel.cosine.T @ self.unit_x) * negatives.scale
            if self.normalize:
                dw = _through_norm(dw, panel.unit, panel.norm)
            dweight[panel.begin : panel.begin + panel.count] = dw.view(panel.count, *self.weight.shape[1:])
        dx = dz * negatives.scale
        return _through_norm(dx, self.unit_x, self.x_norm) if self.normalize else dx, dweight, mean


class _Panel:
    """Cosines with the classes [begin, end), targets and losing sub-centres taken out."""

    def __init__(self, classes: _Classes, begin: int, end: int) -> None:
        weight = classes.weight[begin:end]
        self.begin, self.count = begin, end - begin
        self.unit, self.norm = classes._unit(weight.flatten(0, 1))  # [B S, D], [B S, 1]
        self.cosine = classes.unit_x @ self.unit.T  # [M, B S]
        M, S = len(classes.x), weight.shape[1]
        self.cells = self.cosine.view(M, self.count, S)
        if S > 1:
            best = self.cells.argmax(2, keepdim=True)
            kept = self.cells.gather(2, best)
            self.cells.fill_(NEVER).scatter_(2, best, kept)
        local = classes.target - begin
        self.inside = ((local >= 0) & (local < self.count))[:, None, None]
        self.own = local.clamp(0, self.count - 1)[:, None, None].expand(M, 1, S)
        before = self.cells.gather(1, self.own)  # [M, 1, S]
        self.winner = before > NEVER / 2
        self.cells.scatter_(1, self.own, torch.where(self.inside, NEVER, before))

    def pull_targets_(self, pull: Tensor) -> None:
        """Puts -pull into the cell of each row's target."""
        now = self.cells.gather(1, self.own)
        self.cells.scatter_(1, self.own, torch.where(self.inside & self.winner, -pull[:, None, None], now))


def _through_norm(dz: Tensor, z: Tensor, norm: Tensor) -> Tensor:
    """The gradient with respect to rows before normalisation. Below the clamp the norm is a constant."""
    along = (z * dz).sum(-1, keepdim=True)
    return (dz - z * torch.where(norm > 1e-12, along, 0)) / norm


def _value(cosine: Tensor, negatives: Negatives) -> tuple[Tensor, Tensor | None]:
    """f and f' of a panel [M, B]; f' = 1 is None."""
    if negatives.threshold is None:
        return cosine, None
    hard = cosine > negatives.threshold[:, None]
    f = torch.where(hard, cosine * (negatives.hardness + cosine), cosine)
    return f, torch.where(hard, negatives.hardness + 2 * cosine, 1)


def _add_sums(cosine: Tensor, negatives: Negatives, lse: Tensor) -> Tensor:
    f, _ = _value(cosine, negatives)
    return torch.logaddexp(lse, (f * negatives.scale).logsumexp(1))


def _weigh_(cosine: Tensor, negatives: Negatives, lse: Tensor, coef: Tensor) -> Tensor:
    f, derivative = _value(cosine, negatives)
    p = (f * negatives.scale - lse[:, None]).exp_().mul_(coef[:, None])
    mean = (p * f).sum(1)
    cosine.copy_(p if derivative is None else p * derivative)
    return mean
