"""SAM and ASAM: minimise the loss of the worst neighbour within rho."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_fast.ops.gradients import global_norm
from ssl_fast.ops.sam import sam_adamw_step_, sam_ascend_, sam_sgd_step_
from ssl_fast.optim.passes import RandomState, frozen_statistics
from ssl_fast.optim.wrapper import Wrapper

__all__ = ["SAM"]


class SAM(Wrapper):
    """Sharpness-aware minimisation around any optimiser; `adaptive=True` makes it ASAM.

        e = rho g / |g|        (adaptive: e = rho p^2 g / |p g|),   then the base optimiser's step from p by the
        gradient at p + e

    `step(closure)` calls the closure twice. It must reset the gradients, compute the loss, call `backward` and return
    the loss; unscaling of a loss scale, accumulation over microbatches, clipping and a check that all is finite belong
    there too. When it leaves every gradient None (its way to say: not finite), the parameters come back bit by bit and
    the base optimiser is not called. The second pass draws the same random numbers as the first, and batch
    normalisations in `freeze` record their statistics in the first pass alone.

    The parameters are restored from a saved copy, never by subtraction. Where the base is `torch.optim.SGD` or `AdamW`
    in its plain form, restoring and stepping are one pass over memory; otherwise the parameters are restored first. The
    norm stays on the device and the buffers keep their addresses, so a CUDA graph captures the whole step (with
    `replay_random=False`, and AdamW with `capturable=True`).

    Under DistributedDataParallel both passes average gradients. With `first_pass=model.no_sync` the first one does not:
    each rank climbs by its own rows (m-sharpness with m rows a rank), at the cost of one gradient reduction instead of
    two. The parameters differ between ranks only until they are restored.

    Args:
        params: parameters or groups, as for every `torch.optim.Optimizer`; groups may have their own `rho` and
            `adaptive`. The norm is taken over all groups.
        base_optimizer: called as `base_optimizer(groups, **options)`: `torch.optim.SGD`, `ssl_fast.optim.LARS`, ...
        rho: length of the perturbation; 0.05 to 0.1 is usual, 0.5 to 2 where adaptive.
        adaptive: ASAM: the perturbation of a weight is in proportion to its size.
        freeze: modules whose batch statistics the second pass uses but does not record.
        first_pass: gives the context of the first pass, `model.no_sync` for instance.
        replay_random: give both passes the same random numbers (dropout, drop path).
        impl: implementation of `ssl_fast.ops.sam` and `ssl_fast.ops.gradients`.
        options: of the base optimiser.

    Raises:
        ValueError: a negative rho; in `step`, no closure.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
        >>> x = torch.randn(8, 4)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(x).square().mean()
        ...     loss.backward()
        ...     return loss.detach()
        >>> loss = optimizer.step(closure)

    Reference: Foret et al. 2021, arXiv:2010.01412, Algorithm 1; Kwon et al. 2021, arXiv:2102.11600, Eq. 3.
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        *,
        freeze: nn.Module | Iterable[nn.Module] = (),
        first_pass: Callable[[], AbstractContextManager[Any]] = nullcontext,
        replay_random: bool = True,
        impl: str = "auto",
        **options: Any,
    ) -> None:
        self.rho, self.adaptive = rho, adaptive
        super().__init__(base_optimizer(params, **options))
        self.freeze = [freeze] if isinstance(freeze, nn.Module) else list(freeze)
        self.first_pass = first_pass
        self.replay_random = replay_random
        self.impl = impl
        self._saved: dict[Tensor, Tensor] = {}  # what a parameter was before it was perturbed

    def step(self, closure: Callable[[], float] | None = None) -> float:  # type: ignore[override]
        """Take one step.

        Args:
            closure: as described above; called once or twice.

        Returns:
            The loss of the first pass, at the parameters themselves.
        """
        if closure is None:
            raise ValueError("SAM.step needs a closure that computes the loss and its gradients, got None")
        random = RandomState(self._parameters()) if self.replay_random else None
        with torch.enable_grad(), self.first_pass():
            loss = closure()
        perturbed = self._trained()
        if not perturbed:
            return loss
        self._ascend(perturbed)
        try:
            with torch.enable_grad(), frozen_statistics(*self.freeze):
                if random is not None:
                    random.restore()
                closure()
        except BaseException:
            self._restore(perturbed)
            raise
        if self._trained():
            self._descend(perturbed)
        else:
            self._restore(perturbed)
        return loss

    def _share(self) -> None:
        for group in self.param_groups:
            group.setdefault("rho", self.rho)
            group.setdefault("adaptive", self.adaptive)
            if not group["rho"] >= 0:
                raise ValueError(f"rho must be at least 0, got {group['rho']}")

    @torch.no_grad()
    def _ascend(self, params: list[Tensor]) -> None:
        self._allocate(params)
        plain = _with_gradient(g for g in self.param_groups if not g["adaptive"])
        scaled = _with_gradient(g for g in self.param_groups if g["adaptive"])
        norms = [global_norm(_grads(plain), impl=self.impl)] if plain else []
        norms += [global_norm(_grads(scaled), scaled, impl=self.impl)] if scaled else []
        norm = norms[0] if len(norms) == 1 else torch.hypot(norms[0], norms[1].to(norms[0].device))
        for group in self.param_groups:
            p = _with_gradient([group])
            options = {"norm": norm, "rho": group["rho"], "adaptive": group["adaptive"]}
            sam_ascend_(p, _grads(p), self._of(p), **options, impl=self.impl)

    @torch.no_grad()
    def _restore(self, params: list[Tensor]) -> None:
        if params:
            torch._foreach_copy_(params, self._of(params))

    @torch.no_grad()
    def _descend(self, perturbed: list[Tensor]) -> None:
        """The base optimiser's step from the saved parameters."""
        fused = self._fused()
        if fused is None:
            self._restore(perturbed)
            self.base.step()
            return
        self._restore([p for p in perturbed if p.grad is None])
        known = set(perturbed)
        if late := [p for p in self._trained() if p not in known]:  # without a gradient in the first pass
            self._allocate(late)
            torch._foreach_copy_(self._of(late), late)
        for group in self.param_groups:
            if params := _with_gradient([group]):
                fused(group, params)

    def _fused(self) -> Callable[[dict[str, Any], list[Tensor]], None] | None:
        """The step of the base optimiser that restores too, where there is one."""
        if self.base._optimizer_step_pre_hooks or self.base._optimizer_step_post_hooks:
            return None
        step = {torch.optim.SGD: self._sgd, torch.optim.AdamW: self._adamw}.get(type(self.base))
        odd = ("dampening", "amsgrad", "maximize", "capturable", "differentiable", "fused")
        return None if any(group.get(name) for group in self.param_groups for name in odd) else step

    def _sgd(self, group: dict[str, Any], params: list[Tensor]) -> None:
        buffers = []
        if group["momentum"]:
            for p in params:
                if self.state[p].get("momentum_buffer") is None:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)
            buffers = [self.state[p]["momentum_buffer"] for p in params]
        options = {name: group[name] for name in ("lr", "momentum", "weight_decay", "nesterov")}
        sam_sgd_step_(params, self._of(params), _grads(params), buffers, **options, impl=self.impl)

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        by_step: dict[float, list[Tensor]] = {}
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(p, requires_grad=False)
                state["exp_avg_sq"] = torch.zeros_like(p, requires_grad=False)
            state["step"] += 1
            by_step.setdefault(float(state["step"]), []).append(p)
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        for step, same in by_step.items():
            moments = [[self.state[p][name] for p in same] for name in ("exp_avg", "exp_avg_sq")]
            sam_adamw_step_(same, self._of(same), _grads(same), *moments, step=step, **options, impl=self.impl)

    def _allocate(self, params: list[Tensor]) -> None:
        for p in params:
            if p not in self._saved:
                self._saved[p] = torch.empty_like(p, requires_grad=False)

    def _of(self, params: list[Tensor]) -> list[Tensor]:
        return [self._saved[p] for p in params]


def _with_gradient(groups: Iterable[dict[str, Any]]) -> list[Tensor]:
    return [p for group in groups for p in group["params"] if p.grad is not None]


def _grads(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]
