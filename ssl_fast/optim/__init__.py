"""Optimisers and averaging for self-supervised training, thin classes over `ssl_fast.ops.multi_tensor`."""

from ssl_fast.optim.ema import EMA
from ssl_fast.optim.lars import LARS

__all__ = ["EMA", "LARS"]
