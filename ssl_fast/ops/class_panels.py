"""Softmax over many classes, one panel of classes at a time: cosines of all rows with some classes, in at most 32 MiB.

Matrix products are torch's own; what happens between them is the implementation's (`Passes`). Two walks over the
classes: the normalisers, then the gradients, for which the cosines are computed again. Memory O(M D + C D).

Letters: M rows, C classes of S centres each, B classes of a panel, D embedding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e30  # a cell that takes no part; finite, so that 0 times it is 0
_PANEL_BYTES = 32 << 20


@dataclass
class Negatives:
    """How a negative cosine c becomes a logit: scale f(c), with f = c (hardness + c) above the threshold, else c."""

    scale: float | Tensor  # []
    threshold: Tensor | None  # [M]
    hardness: float | Tensor  # []


@dataclass
class Passes:
    """What an implementation does to a panel of cosines [M, B S]."""

    # Returns log(exp(lse) + sum_j exp(scale f)), [M].
    add_sums: Callable[[Tensor, Negatives, Tensor], Tensor]
    # panel <- p f'(panel) in place, p = coef exp(scale f - lse); returns sum_j p f, [M].
    weigh_: Callable[[Tensor, Negatives, Tensor, Tensor], Tensor]


@dataclass
class Classes:
    """Rows against classes: x [M, D], weight [C, S, D], target [M] (outside [0, C): none)."""

    x: Tensor
    weight: Tensor
    target: Tensor
    normalize: bool

    def __post_init__(self) -> None:
        self.dtype = torch.promote_types(self.x.dtype, torch.float32)
        self.unit_x, self.x_norm = self._unit(self.x)
        M, S = len(self.x), self.weight.shape[1]
        self.per_panel = max(1, _PANEL_BYTES // max(1, M * S * self.unit_x.element_size()))

    def _unit(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.detach().to(self.dtype)
        norm = rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return (rows / norm, norm) if self.normalize else (rows, norm)

    def panels(self) -> Iterator["Panel"]:
        """The classes, some at a time."""
        for first in range(0, len(self.weight), self.per_panel):
            yield Panel(self, first)

    def log_sums(self, negatives: Negatives, passes: Passes) -> Tensor:
        """Log of the sum over all classes but the target, [M]; about -1e30 where there is none."""
        lse = torch.full((len(self.x),), NEVER, dtype=self.dtype, device=self.x.device)
        for panel in self.panels():
            lse = passes.add_sums(panel.cosine, negatives, lse)
        return lse

    def gradients(
        self,
        negatives: Negatives,
        passes: Passes,
        lse: Tensor,  # [M]
        coef: Tensor,  # [M] weight of each row's negatives
        pull: Tensor,  # [M] weight of its target's cosine
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dx [M, D], dweight [C, S, D] and sum_j coef p f [M]."""
        dz = torch.zeros_like(self.unit_x)
        dweight = torch.zeros(self.weight.shape, dtype=self.dtype, device=self.x.device)
        mean = torch.zeros_like(lse)
        for panel in self.panels():
            mean += passes.weigh_(panel.cosine, negatives, lse, coef)
            panel.pull_targets_(pull)
            dz.addmm_(panel.cosine, panel.unit)
            dw = (panel.cosine.T @ self.unit_x) * negatives.scale
            if self.normalize:
                dw = through_norm(dw, panel.unit, panel.norm)
            dweight[panel.first : panel.first + panel.count] = dw.view(panel.count, *self.weight.shape[1:])
        dx = dz * negatives.scale
        return through_norm(dx, self.unit_x, self.x_norm) if self.normalize else dx, dweight, mean


class Panel:
    """Cosines with the classes [first, first + B), targets and losing sub-centres taken out."""

    def __init__(self, classes: Classes, first: int) -> None:
        weight = classes.weight[first : first + classes.per_panel]
        self.first, self.count = first, len(weight)
        self.unit, self.norm = classes._unit(weight.flatten(0, 1))  # [B S, D], [B S, 1]
        self.cosine = classes.unit_x @ self.unit.T  # [M, B S]
        M, S = len(classes.x), weight.shape[1]
        self.cells = self.cosine.view(M, self.count, S)
        if S > 1:
            best = self.cells.argmax(2, keepdim=True)
            kept = self.cells.gather(2, best)
            self.cells.fill_(NEVER).scatter_(2, best, kept)
        local = classes.target - first
        self.inside = ((local >= 0) & (local < self.count))[:, None, None]
        self.own = local.clamp(0, self.count - 1)[:, None, None].expand(M, 1, S)
        before = self.cells.gather(1, self.own)  # [M, 1, S]
        self.winner = before > NEVER / 2
        self.cells.scatter_(1, self.own, torch.where(self.inside, NEVER, before))

    def pull_targets_(self, pull: Tensor) -> None:
        """Puts -pull into the cell of each row's target."""
        now = self.cells.gather(1, self.own)
        self.cells.scatter_(1, self.own, torch.where(self.inside & self.winner, -pull[:, None, None], now))


def through_norm(dz: Tensor, z: Tensor, norm: Tensor) -> Tensor:
    """The gradient with respect to rows before normalisation. Below the clamp the norm is a constant."""
    along = (z * dz).sum(-1, keepdim=True)
    return (dz - z * torch.where(norm > 1e-12, along, 0)) / norm


def row_weights(
    lse: Tensor,  # [M]
    phi: Tensor,  # [M]
    slope: Tensor,  # [M]
    scale: float | Tensor,
    row_weight: Tensor,  # [M]
) -> tuple[Tensor, Tensor]:
    """coef and pull, each [M], of sum_i row_weight_i softplus(lse_i - scale phi_i): no 1 - p_target to cancel."""
    coef = row_weight * (lse - scale * phi).sigmoid()
    return coef, coef * slope


def softplus(above: Tensor) -> Tensor:
    """log(1 + e^above)."""
    return F.softplus(above, threshold=60)
