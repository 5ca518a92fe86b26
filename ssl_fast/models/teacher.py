"""Momentum teacher: an exponential moving average of a student network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ssl_fast.ops.multi_tensor import ema_update_


class Teacher(nn.Module):
    """A copy of `module` without gradients, that follows it: t = momentum t + (1 - momentum) s.

    Parameters are averaged; buffers (batch statistics, counters) are copied, so that in eval mode the teacher
    normalises as the student does. `train()` and `eval()` act as on any submodule: a method that owns a teacher
    has it in train mode while it trains (batch statistics of its own views, as in MoCo and BYOL), and one that
    wants running statistics calls `teacher.eval()` in its own `train()`. Stochastic depth is off in the copy, in
    either mode: a target should not be short of a block.

    Args:
        module: the student network to copy: built, with its weights; a DDP or compile wrapper must be removed.

    Reference: He et al. 2020, arXiv:1911.05722, Eq. 2; Grill et al. 2020, arXiv:2006.07733, Eq. 1.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)
        for part in self.module.modules():
            if hasattr(part, "drop_prob"):  # timm's DropPath and DropBlock
                part.drop_prob = 0.0  # type: ignore[assignment]

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's forward, never building a graph."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update_(self, module: nn.Module, momentum: float) -> None:
        """Move towards `module` in place.

        Args:
            module: the student, of the structure that the teacher was made from.
            momentum: in [0, 1]; 1 leaves the parameters as they are, 0 copies the student.

        Raises:
            ValueError: when momentum is outside [0, 1] or the structures differ.
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        ema_update_(*_pairs(dict(self.module.named_parameters()), dict(module.named_parameters())), momentum)
        for target, source in zip(
            *_pairs(dict(self.module.named_buffers()), dict(module.named_buffers())), strict=True
        ):
            target.copy_(source)


def _pairs(targets: dict[str, Tensor], sources: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    if targets.keys() != sources.keys():
        odd = sorted(targets.keys() ^ sources.keys())
        raise ValueError(f"module must have the teacher's structure; {len(odd)} names differ, first {odd[0]!r}")
    return list(targets.values()), [sources[name].detach() for name in targets]
