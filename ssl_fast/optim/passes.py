"""What a second pass over the same rows needs: the same random numbers, and batch statistics recorded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["RandomState", "frozen_statistics"]


@contextmanager
def frozen_statistics(*modules: nn.Module) -> Iterator[None]:
    """Within it, batch normalisation normalises as always and leaves its running statistics as they are.

    Args:
        modules: whose batch normalisations, at any depth, are frozen; may be nested.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with frozen_statistics(norm):
        ...     _ = norm(torch.randn(8, 2) + 5.0)
        >>> norm.running_mean.tolist()
        [0.0, 0.0]
    """
    norms = [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class RandomState:
    """The state of torch's random numbers on the CPU and on the devices of some tensors, to go back to.

    Reading it waits for no device. Within the capture of a CUDA graph it cannot be read.

    Args:
        tensors: their devices count.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = {device: torch.cuda.get_rng_state(device) for device in {t.device for t in tensors if t.is_cuda}}

    def restore(self) -> None:
        """Go back: what is drawn next is what was drawn after the state was read."""
        torch.set_rng_state(self.cpu)
        for device, state in self.cuda.items():
            torch.cuda.set_rng_state(state, device)
