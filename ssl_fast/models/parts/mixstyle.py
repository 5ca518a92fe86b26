"""MixStyle: while training, the channel statistics of an image are mixed with those of another one in the batch.

    y = (l sigma(x) + (1 - l) sigma(x')) (x - mu(x)) / sigma(x) + l mu(x) + (1 - l) mu(x'),   l ~ Beta(alpha, alpha)

mu and sigma are an image's mean and deviation of each channel, without gradient; x' is the batch in random order.

Reference: Zhou et al. 2021, arXiv:2104.02008, Eq. 3-5; section 3.1 (probability 0.5, alpha 0.1, after stages 1 and 2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssl_fast.models.parts.families import require

ALPHA = 0.1
EPS = 1e-6
STAGES = 2  # the first ones: late stages hold what the image shows, early ones its style


class MixStyle(nn.Module):
    """Mixes in train mode, hands through in eval mode. Randomness is torch's global generator, replayed with it.

    Args:
        probability: that a batch is mixed, in [0, 1].
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
    ) -> Tensor:  # [N, C, H, W]
        """The batch in mixed styles, or as it is."""
        if not self.training:
            return x
        alpha = torch.full((len(x), 1, 1, 1), ALPHA, dtype=torch.float32, device=x.device)
        share = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()
        # where the whole batch is left alone every share is 1: no branch, so a GPU is not waited for
        share = torch.where(torch.rand((), device=x.device) < self.probability, share, 1.0).to(x.dtype)
        order = torch.randperm(len(x), device=x.device)
        with torch.no_grad():
            deviation, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
            deviation = (deviation + EPS).sqrt()
            new_deviation = torch.lerp(deviation[order], deviation, share)
            new_mean = torch.lerp(mean[order], mean, share)
        return (x - mean) / deviation * new_deviation + new_mean

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"probability={self.probability}"


def add_mixstyle(model: Any, probability: float, name: str) -> None:
    """Puts MixStyle after the first two stages of a ResNet or ConvNeXt, in place; no tensor is added.

    Raises:
        ValueError: another family.
    """
    family = require(model, "mixstyle", ("resnet", "convnext"), name)
    stages = (model.layer1, model.layer2) if family == "resnet" else [s.blocks for s in model.stages[:STAGES]]
    for stage in stages:
        stage.append(MixStyle(probability))
