"""Lookahead: k steps forward with any optimiser, one step back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from ssl_fast.ops.multi_tensor import lookahead_update_
from ssl_fast.optim.wrapper import Wrapper

__all__ = ["Lookahead"]


class Lookahead(Wrapper):
    """Keeps slow weights that follow the trained (fast) ones, and brings the fast ones back to them every k steps.

        every k steps:  s <- s + alpha (f - s);   f <- s

    The slow weights start where training starts, as in the paper, and are part of the saved state. The inner optimiser
    keeps its momentum across the step back. A step in which no parameter has a gradient (a skipped one) is not counted.
    Which step is the k-th is the host's knowledge: a CUDA graph holds either a plain step or the step back.

    Args:
        base: the optimiser of the fast weights, of any kind.
        k: steps forward.
        alpha: rate of the slow step, in [0, 1].
        impl: implementation of `ssl_fast.ops.multi_tensor.lookahead_update_`.

    Raises:
        ValueError: k is below 1 or alpha outside [0, 1]; in `load_state_dict`, a state without slow weights.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=5)
        >>> model(torch.randn(3, 4)).square().sum().backward()
        >>> optimizer.step()

    Reference: Zhang et al. 2019, arXiv:1907.08610, Algorithm 1.
    """

    def __init__(self, base: Optimizer, k: int = 6, alpha: float = 0.5, *, impl: str = "auto") -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
        super().__init__(base)
        self.k = k
        self.alpha = alpha
        self.impl = impl
        self.steps = 0  # since the last step back
        self.slow: list[Tensor] = []  # one for each parameter, from the first step on

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step of the inner optimiser and, every k steps, the step back.

        Args:
            closure: re-evaluates the model and returns the loss, which `step` then returns.
        """
        self._follow()
        loss = self.base.step() if closure is None else self.base.step(closure)
        if self._trained():
            self.steps += 1
        if self.steps >= self.k:
            self.sync_()
        return loss

    def sync_(self) -> None:
        """Take the step back now, whatever the count: before an evaluation of the slow weights or at the end.

        Training goes on from there with a new count of k, so a run with it differs from one without.
        """
        self._follow()
        lookahead_update_(self._parameters(), self.slow, self.alpha, impl=self.impl)
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's state, and under `lookahead` the slow weights and the count."""
        return {**self.base.state_dict(), "lookahead": {"steps": self.steps, "slow": list(self.slow)}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; the slow weights are copied."""
        if "lookahead" not in state_dict:
            raise ValueError("state_dict must hold the key 'lookahead', got one of another optimiser")
        super().load_state_dict(state_dict)
        saved = state_dict["lookahead"]
        self.steps = saved["steps"]
        params = self._parameters()
        if len(saved["slow"]) > len(params):
            raise ValueError(f"state_dict must hold {len(params)} slow weights or fewer, got {len(saved['slow'])}")
        self.slow = [torch.empty_like(p).copy_(s) for p, s in zip(params, saved["slow"], strict=False)]

    @torch.no_grad()
    def _follow(self) -> None:
        """Slow weights of parameters that are new: those that they start from."""
        self.slow += [p.detach().clone() for p in self._parameters()[len(self.slow) :]]
