"""Gradient centralisation in front of any optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

from torch.optim import Optimizer

from ssl_fast.ops.gradients import centralize_gradients_
from ssl_fast.optim.wrapper import Wrapper

__all__ = ["GradientCentralization"]


class GradientCentralization(Wrapper):
    """Takes the mean of each output unit off its gradient before the inner optimiser steps.

        g_o <- g_o - mean(g_o)        (tensors with more than one dimension; o counts the first)

    With a closure the gradients are centralised at its end, each time that it is called: around `SAM` both passes are.
    Keeps no state. The op alone is `ssl_fast.ops.gradients.centralize_gradients_`.

    Args:
        base: any optimiser.
        impl: implementation of `ssl_fast.ops.gradients.centralize_gradients_`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = GradientCentralization(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> model(torch.randn(3, 4)).square().sum().backward()
        >>> optimizer.step()

    Reference: Yong et al. 2020, arXiv:2004.01461, Eq. 1 and Algorithm 1.
    """

    def __init__(self, base: Optimizer, *, impl: str = "auto") -> None:
        super().__init__(base)
        self.impl = impl

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step of the inner optimiser with centralised gradients.

        Args:
            closure: re-evaluates the model and returns the loss, which `step` then returns.
        """
        if closure is None:
            self._centralize()
            return self.base.step()

        def centralized() -> float:
            loss = closure()
            self._centralize()
            return loss

        return self.base.step(centralized)

    def _centralize(self) -> None:
        centralize_gradients_([p.grad for p in self._trained() if p.grad is not None], impl=self.impl)
