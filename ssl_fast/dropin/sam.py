"""davda54's SAM: change `from sam import SAM` to `from ssl_fast.dropin.sam import SAM`.

`first_step`, `second_step`, `step(closure)` and `base_optimizer` are what they are there. Differences: the state dict
is the base optimiser's (there its state, momentum among it, is not saved); their state dicts load. A parameter without
a gradient in the second pass comes back to where it was (there it stays perturbed). A negative rho raises ValueError.

`ssl_fast.optim.SAM` is the optimiser behind it: one closure for both passes, frozen batch statistics, first passes
without gradient reduction.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ssl_fast.optim.sam import SAM as _SAM


class SAM(_SAM):
    """Sharpness-aware minimisation in two steps.

    Args:
        params: parameters or groups; groups may have their own `rho` and `adaptive`.
        base_optimizer: class of the optimiser that takes the second step.
        rho: length of the perturbation.
        adaptive: ASAM: the perturbation of a weight is in proportion to its size.
        options: of the base optimiser.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
        >>> x = torch.randn(8, 4)
        >>> model(x).square().mean().backward()
        >>> optimizer.first_step(zero_grad=True)
        >>> model(x).square().mean().backward()
        >>> optimizer.second_step(zero_grad=True)

    Reference: Foret et al. 2021, arXiv:2010.01412, Algorithm 1; Kwon et al. 2021, arXiv:2102.11600, Eq. 3.
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        **options: Any,
    ) -> None:
        # All options are the base optimiser's, also one that is called as ours are (`freeze`, `impl`).
        super().__init__(params, partial(base_optimizer, **options), rho, adaptive)
        self._perturbed: list[Tensor] = []

    @property
    def base_optimizer(self) -> Optimizer:
        """The optimiser that takes the second step."""
        return self.base

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Climbs to the worst neighbour along the gradients that are there."""
        self._perturbed = self._trained()
        if self._perturbed:
            self._ascend(self._perturbed)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Goes back, and takes the base optimiser's step by the gradients that are there."""
        self._descend(self._perturbed)
        self._perturbed = []
        # Learning-rate schedules ask the optimiser that they were given; the step may have been a fused one.
        for optimizer in (self, self.base):
            vars(optimizer)["_opt_called"] = True
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Both steps, of gradients that are there already; the closure computes those of the second.

        Returns:
            What the closure returned.
        """
        if closure is None:
            raise ValueError("Sharpness Aware Minimization requires closure, but it was not provided")
        self.first_step(zero_grad=True)
        with torch.enable_grad():
            loss = closure()
        self.second_step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class, or of davda54's, whose saved parameters nobody needs."""
        states = {
            key: {name: value for name, value in state.items() if name != "old_p"}
            for key, state in state_dict["state"].items()
        }
        super().load_state_dict({**state_dict, "state": states})
