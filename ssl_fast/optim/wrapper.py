"""What optimisers that stand around another optimiser share."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Wrapper"]


class Wrapper(Optimizer):
    """An optimiser around another: its groups, state, defaults and saved state are the inner one's.

    So learning-rate schedules, checkpoints and gradient scalers see one optimiser, and wrappers may be nested. A
    subclass writes `step(closure)`; what it keeps of its own goes into the saved state under a key of its own.

    Args:
        base: the optimiser inside.
    """

    def __init__(self, base: Optimizer) -> None:
        self.base = base
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._patch_step_function()
        self._share()

    # Looked up each time: `base.load_state_dict` puts others in their place.
    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The inner optimiser's groups."""
        return self.base.param_groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """The inner optimiser's state."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The inner optimiser's defaults."""
        return self.base.defaults

    def __getstate__(self) -> dict[str, Any]:
        """All but the hooks, for copies and pickles."""
        return {name: value for name, value in self.__dict__.items() if not name.endswith("_hooks")}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimiser."""
        self.base.add_param_group(param_group)
        self._share()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients."""
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's state."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        self.base.load_state_dict(state_dict)
        self._share()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    def _share(self) -> None:
        """Called when the groups have changed: a subclass puts into them what it keeps there."""

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _trained(self) -> list[Tensor]:
        """Parameters that have a gradient: none at all after a pass that was not finite."""
        return [p for p in self._parameters() if p.grad is not None]
