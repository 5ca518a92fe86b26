"""Exponential moving average of a student: the teacher of BYOL, MoCo and DINO."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ssl_fast.ops.multi_tensor import ema_update_

__all__ = ["EMA"]


class EMA:
    """Keeps a teacher's tensors at the exponential moving average of a student's: t <- m t + (1 - m) s.

    Holds no copy of its own and changes nothing until `update_`: the teacher is made by the caller (for example with
    `copy.deepcopy`), keeps its own dtype, and is saved with the model it belongs to.

    Args:
        target: the teacher, a module or an iterable of tensors. Of a module, the parameters are averaged: those that
            it has now, so make a new EMA after `load_state_dict(assign=True)`.
        source: the student, with the same tensors in the same order; its dtype may differ (fp32 teacher, bf16 student).
        momentum: m, used where `update_` gets none.
        buffers: for modules, update buffers too: floating-point ones (running statistics) are averaged, others copied.
            By default a teacher keeps the statistics of its own forward passes.
        impl: implementation of `ssl_fast.ops.multi_tensor.ema_update_`.

    Raises:
        ValueError: teacher and student do not match, or momentum lies outside [0, 1].

    Example:
        >>> import copy, torch
        >>> student = torch.nn.Linear(4, 2)
        >>> teacher = copy.deepcopy(student).requires_grad_(False)
        >>> ema = EMA(teacher, student, momentum=0.99)
        >>> ema.update_()

    Reference: Grill et al. 2020, arXiv:2006.07733, Eq. 1; He et al. 2020, arXiv:1911.05722, Eq. 2.
    """

    def __init__(
        self,
        target: nn.Module | Iterable[Tensor],
        source: nn.Module | Iterable[Tensor],
        momentum: float = 0.996,
        *,
        buffers: bool = False,
        impl: str = "auto",
    ) -> None:
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        self.targets, self.sources = _tensors(target, buffers), _tensors(source, buffers)
        self.modules = [m for m in (target, source) if isinstance(m, nn.Module)] if buffers else []
        self.momentum = momentum
        self.impl = impl
        shapes = [[tuple(t.shape) for t in tensors] for tensors in (self.targets, self.sources)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"target and source must have the same tensors in the same order, got {len(shapes[0])} and "
                f"{len(shapes[1])} tensors with shapes {_difference(*shapes)}"
            )

    def update_(self, momentum: float | None = None) -> None:
        """Move the teacher one step.

        Args:
            momentum: m of this step, for schedules; by default the one given at construction.
        """
        if len(self.modules) == 2:  # `module.to` puts other tensors in the place of buffers, not of parameters
            self.targets, self.sources = (_tensors(module, True) for module in self.modules)
        ema_update_(self.targets, self.sources, self.momentum if momentum is None else momentum, impl=self.impl)


def _tensors(model: nn.Module | Iterable[Tensor], buffers: bool) -> list[Tensor]:
    if not isinstance(model, nn.Module):
        return list(model)
    return [*model.parameters(), *(model.buffers() if buffers else ())]


def _difference(targets: list[tuple[int, ...]], sources: list[tuple[int, ...]]) -> str:
    pairs = zip(targets, sources, strict=False)
    return next((f"{t} and {s} at position {i}" for i, (t, s) in enumerate(pairs) if t != s), "equal as far as both go")
