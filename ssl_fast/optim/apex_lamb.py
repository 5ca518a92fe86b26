"""LAMB's step by NVIDIA apex, for those who have built it and ask for it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

__all__ = ["ApexLamb"]

_SHARED = ("lr", "betas", "eps", "weight_decay", "bias_correction")


class ApexLamb:
    """apex.optimizers.FusedLAMB over the groups of a `LAMB`, each cut in two: parameters that are adapted and others.

    Its clipping is off, as in `LAMB`. apex scales every parameter under `use_nvlamb` and otherwise those that decay, so
    two of its optimisers do what `adapt` says: one of each kind, the second without decay.

    Args:
        groups: of the `LAMB`.

    Raises:
        RuntimeError: apex is not installed with its CUDA extensions, or a group asks for `clip`.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        try:
            fused_lamb = import_module("apex.optimizers").FusedLAMB
        except (ImportError, AttributeError) as error:
            raise RuntimeError(
                f"impl='apex' of LAMB is not available: apex.optimizers has no FusedLAMB ({error})"
            ) from error
        if any(group["clip"] for group in groups):
            raise RuntimeError("impl='apex' of LAMB is not available: apex cannot clip the trust ratio (clip=True)")
        self._inner: dict[str, torch.optim.Optimizer] = {}
        self._sources: dict[str, list[int]] = {}  # which group each inner group is a part of
        for half, name in enumerate(("adapted", "others")):
            parts = [_halves(group)[half] for group in groups]
            self._sources[name] = [i for i, part in enumerate(parts) if part]
            if any(parts):
                own = [{"params": part} for part in parts if part]
                self._inner[name] = fused_lamb(own, max_grad_norm=float("inf"), use_nvlamb=name == "adapted")

    def step(self, groups: list[dict[str, Any]]) -> None:
        """One step with the groups' present numbers."""
        for name, optimizer in self._inner.items():
            for i, group in zip(self._sources[name], optimizer.param_groups, strict=True):
                group.update({key: groups[i][key] for key in _SHARED})
                if name == "others":
                    group["weight_decay"] = 0.0
            optimizer.step()

    def state_dict(self, outer: dict[str, Any]) -> dict[str, Any]:
        """The outer state with that of the inner optimisers under `apex`."""
        return {**outer, "apex": {name: optimizer.state_dict() for name, optimizer in self._inner.items()}}

    def load_state_dict(self, groups: list[dict[str, Any]], state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        if "apex" not in state_dict:
            raise ValueError("state_dict must be of a LAMB with impl='apex', got one without the key 'apex'")
        for name, optimizer in self._inner.items():
            optimizer.load_state_dict(state_dict["apex"][name])


def _halves(group: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Parameters of a group that are adapted, and the others."""
    adapt = group["adapt"]
    flags = [p.ndim > 1 if adapt is None else adapt for p in group["params"]]
    adapted = [p for p, flag in zip(group["params"], flags, strict=True) if flag]
    return adapted, [p for p, flag in zip(group["params"], flags, strict=True) if not flag]
