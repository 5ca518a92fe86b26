"""Autocast and loss scaling.

fp16 scaling is our own because `GradScaler.step` refuses closures, and optimisers that evaluate the loss twice in one
step (SAM) need one scale and one verdict over all passes.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(name: str, device: torch.device) -> str:
    """ "auto" becomes bf16 where the hardware multiplies it, else fp32; other names are checked."""
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = "avx512_bf16" in _cpu_flags()
        return "bf16" if native else "fp32"
    if name not in _DTYPES:
        raise ValueError(f"train.precision: expected auto, fp32, bf16 or fp16, got {name!r}")
    return name


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return set()
    return set(line.split())


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast region of a forward pass."""
    return torch.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "fp32")


class LossScale:
    """Dynamic loss scale: halved after a step with non-finite gradients, doubled after 2,000 good ones.

    Reference: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
    """

    def __init__(self, enabled: bool) -> None:
        self.value = 2.0**16 if enabled else 1.0
        self.enabled = enabled
        self._good = 0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call backward on."""
        return loss * self.value if self.enabled else loss

    def unscale_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divides the gradients by the scale."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.enabled and gradients:
            torch._foreach_mul_(gradients, 1.0 / self.value)

    def update(self, finite: bool) -> None:
        """Learns from a step whether the scale was too large."""
        if not self.enabled:
            return
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 1.0)
        elif self._good == 2000:
            self.value, self._good = self.value * 2, 0

    def can_shrink(self) -> bool:
        """Whether a non-finite gradient may be the scale's fault, so that skipping is not yet an alarm."""
        return self.enabled and self.value > 1.0

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"value": self.value, "good": self._good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continues from a checkpoint's scale."""
        self.value, self._good = float(state["value"]), int(state["good"])
