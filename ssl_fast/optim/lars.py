"""LARS: layer-wise adaptive rate scaling, SGD with momentum for very large batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from ssl_fast.ops.multi_tensor import lars_step_
from ssl_fast.optim.wide_state import check_group, evaluate, load_wide_state, with_gradients

__all__ = ["LARS"]

_STATE = ("momentum_buffer",)


class LARS(Optimizer):
    """SGD with momentum whose rate in each layer is proportional to |p| / |g|.

        r = eta |p| / (|g| + beta |p| + eps);   v <- mu v + r (g + beta p);   p <- p - lr v

    By the convention of self-supervised learning (SimCLR, BYOL, Barlow Twins) biases and the scales and shifts of
    norms, that is parameters with fewer than two dimensions, are neither scaled (r = 1) nor decayed (beta = 0). The
    group option `adapt` overrides it: True scales and decays all of the group, False none of it.

    The norms, the ratio and the update of all parameters take two launches on a GPU and two passes in cache on a CPU,
    with no synchronisation with the host. Momentum is kept in float32 (float64 for float64 parameters), in bf16 and
    fp16 training and through `load_state_dict` too.

    Args:
        params: parameters or groups, as for every `torch.optim.Optimizer`.
        lr: learning rate; SimCLR uses 0.3 x batch / 256. A 0-dim tensor stays on its device, for CUDA graphs.
        momentum: mu.
        weight_decay: beta.
        trust_coefficient: eta.
        eps: added to the denominator of r.
        nesterov: look ahead along the momentum.
        clip: r <- min(r / lr, 1), so that a layer moves at the rate min(r, lr) (the variant known as LARC).
        adapt: True, False, or None for the convention above.
        impl: implementation of `ssl_fast.ops.multi_tensor.lars_step_`.

    Raises:
        ValueError: a negative or otherwise impossible number.
        RuntimeError: in `step`, a sparse gradient.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = LARS(model.parameters(), lr=0.3)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> optimizer.step()

    Reference: You et al. 2017, arXiv:1708.03888, Algorithm 1; exclusions: Chen et al. 2020, arXiv:2002.05709, B.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        nesterov: bool = False,
        clip: bool = False,
        *,
        adapt: bool | None = None,
        impl: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "nesterov": nesterov,
            "clip": clip,
            "adapt": adapt,
        }
        self.impl = impl
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles."""
        return {**super().__getstate__(), "impl": self.impl}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see `torch.optim.Optimizer.add_param_group`."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; momentum keeps its dtype, which torch's rule would cast to the parameter's."""
        super().load_state_dict(state_dict)
        load_wide_state(self, state_dict, _STATE)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; parameters without a gradient are left alone.

        Args:
            closure: re-evaluates the model and returns the loss, which `step` then returns.
        """
        loss = evaluate(closure)
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params, grads = with_gradients(self, group, _STATE)
        if not params:
            return
        adapt = group["adapt"]
        lars_step_(
            params,
            grads,
            [self.state[p]["momentum_buffer"] for p in params],
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            trust_coefficient=group["trust_coefficient"],
            eps=group["eps"],
            nesterov=group["nesterov"],
            clip=group["clip"],
            adapt=None if adapt is None else [adapt] * len(params),
            impl=self.impl,
        )


def _check(group: dict[str, Any]) -> None:
    check_group(group, ("lr", "momentum", "weight_decay", "trust_coefficient", "eps"))
    if group["nesterov"] and group["momentum"] == 0:
        raise ValueError("nesterov needs momentum > 0, got momentum=0")
