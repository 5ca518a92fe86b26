"""State that optimisers keep in at least fp32 whatever the parameters' dtype, and how their step begins."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def new_state(p: Tensor) -> Tensor:
    """Uninitialised, with p's layout."""
    return torch.empty_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)


def load_wide_state(optimizer: Optimizer, state_dict: dict[str, Any], names: tuple[str, ...]) -> None:
    """Copies these tensors of a loaded `state_dict` once more: torch's rule has cast them to the parameters' dtype."""
    saved_ids = (i for group in state_dict["param_groups"] for i in group["params"])
    params = (p for group in optimizer.param_groups for p in group["params"])
    for saved_id, p in zip(saved_ids, params, strict=True):
        for name in names:
            saved = state_dict["state"].get(saved_id, {}).get(name)
            if saved is not None:
                optimizer.state[p][name] = new_state(p).copy_(saved)


def with_gradients(
    optimizer: Optimizer, group: dict[str, Any], names: tuple[str, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """The group's parameters that have a gradient, and these; what has no state yet gets the named tensors of zeros.

    Raises:
        RuntimeError: a sparse gradient.
    """
    params = [p for p in group["params"] if p.grad is not None]
    if any(p.grad.is_sparse for p in params):
        name = type(optimizer).__name__
        raise RuntimeError(f"{name} needs dense gradients, got a sparse one (embedding layers: use sparse=False)")
    for p in params:
        if names[0] not in optimizer.state[p]:
            optimizer.state[p].update({name: new_state(p).zero_() for name in names})
    return params, [p.grad for p in params]


def evaluate(closure: Callable[[], float] | None) -> float | None:
    """The loss of a step's closure, with gradients on."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def check_group(group: dict[str, Any], numbers: tuple[str, ...]) -> None:
    """Raises ValueError unless these numbers are at least 0 and `adapt` is True, False or None."""
    for name in numbers:
        if isinstance(group[name], float | int) and not group[name] >= 0:
            raise ValueError(f"{name} must be at least 0, got {group[name]}")
    if group["adapt"] not in (None, True, False):
        raise ValueError(f"adapt must be True, False or None, got {group['adapt']!r}")
