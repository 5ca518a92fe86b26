"""LAMB: layer-wise adaptive moments, Adam for very large batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from ssl_fast.ops.lamb import lamb_step_
from ssl_fast.optim.apex_lamb import ApexLamb
from ssl_fast.optim.wide_state import check_group, evaluate, load_wide_state, with_gradients

__all__ = ["LAMB"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


class LAMB(Optimizer):
    """AdamW whose rate in each layer is proportional to |p| / |u|, u being its direction.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
        u = (m / (1 - b1^t)) / ((v / (1 - b2^t))^(1/2) + eps) + beta p;   p <- p - lr |p| / |u| u

    As in `LARS`, parameters with fewer than two dimensions are neither scaled nor decayed, and the group option `adapt`
    overrides it. Gradients are taken as they are: clip them before with `ssl_fast.clip_grad_norm_` where wanted (other
    versions clip to a global norm of 1 by default). The moments are float32 (float64 for float64 parameters), through
    `load_state_dict` too, and the number of the step lies on the device: a CUDA graph captures the step.

    Args:
        params: parameters or groups, as for every `torch.optim.Optimizer`.
        lr: learning rate. A 0-dim tensor stays on its device, for CUDA graphs.
        betas: b1 and b2.
        eps: added to the root of the second moment.
        weight_decay: beta.
        bias_correction: divide the moments by 1 - b^t.
        clip: let the trust ratio be 1 at most.
        adapt: True, False, or None for the convention above.
        impl: implementation of `ssl_fast.ops.lamb.lamb_step_`, or `"apex"`: NVIDIA apex's FusedLAMB does the step,
            where it is installed; its state is its own and cannot be loaded into the others.

    Raises:
        ValueError: a negative or otherwise impossible number.
        RuntimeError: `impl="apex"` without apex; in `step`, a sparse gradient.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = LAMB(model.parameters(), lr=0.01)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> optimizer.step()

    Reference: You et al. 2020, arXiv:1904.00962, Algorithm 2, with phi(x) = x.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        clip: bool = False,
        *,
        adapt: bool | None = None,
        impl: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "clip": clip,
            "adapt": adapt,
            "step": 0,
        }
        self.impl = impl
        self._apex: ApexLamb | None = None
        super().__init__(params, defaults)
        if impl == "apex":
            self._apex = ApexLamb(self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles."""
        return {**super().__getstate__(), "impl": self.impl, "_apex": self._apex}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see `torch.optim.Optimizer.add_param_group`."""
        _check({**self.defaults, **param_group})
        if self._apex is not None:
            raise RuntimeError("a LAMB with impl='apex' takes all its groups when it is made")
        super().add_param_group(param_group)
        self.param_groups[-1]["step"] = torch.zeros((), dtype=torch.float64)  # its own, not the default's

    def state_dict(self) -> dict[str, Any]:
        """Groups and moments, as every `torch.optim.Optimizer`."""
        return super().state_dict() if self._apex is None else self._apex.state_dict(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; moments keep their dtype, which torch's rule would cast to the parameter's."""
        super().load_state_dict(state_dict)
        if self._apex is not None:
            self._apex.load_state_dict(self.param_groups, state_dict)
            return
        load_wide_state(self, state_dict, _MOMENTS)

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
        if self._apex is not None:
            self._apex.step(self.param_groups)
            return loss
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params, grads = with_gradients(self, group, _MOMENTS)
        if not params:
            return
        if group["step"].device != params[0].device:
            group["step"] = group["step"].to(params[0].device)
        group["step"] += 1
        adapt = group["adapt"]
        lamb_step_(
            params,
            grads,
            *([self.state[p][name] for p in params] for name in _MOMENTS),
            step=group["step"],
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            bias_correction=group["bias_correction"],
            clip=group["clip"],
            adapt=None if adapt is None else [adapt] * len(params),
            impl=self.impl,
        )


def _check(group: dict[str, Any]) -> None:
    check_group(group, ("lr", "eps", "weight_decay"))
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), got {group['betas']}")
