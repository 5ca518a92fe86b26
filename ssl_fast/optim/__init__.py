"""Optimisers and averaging for self-supervised training, thin classes over the multi-tensor ops of `ssl_fast.ops`."""

from ssl_fast.optim.centralize import GradientCentralization
from ssl_fast.optim.ema import EMA
from ssl_fast.optim.lamb import LAMB
from ssl_fast.optim.lars import LARS
from ssl_fast.optim.lookahead import Lookahead
from ssl_fast.optim.sam import SAM

__all__ = ["EMA", "LAMB", "LARS", "SAM", "GradientCentralization", "Lookahead"]
