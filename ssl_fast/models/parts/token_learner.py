"""TokenLearner: half-way through a vision transformer a few learned mixtures take the place of all patches.

    z = softmax_over_patches(MLP(LayerNorm(x)))^T x,   x: patches [P, F],  z: [S, F]

Reference: Ryoo et al. 2021, arXiv:2106.11297, Eq. 1-2; the authors' version 1.1 (one MLP of width 64 for all maps,
softmax); section 4.2 (in the middle of the network).
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ssl_fast.models.parts.sequence import embed, require_plain_blocks

HIDDEN = 64


class TokenLearner(nn.Module):
    """Patches [N, P, F] to S mixtures of them [N, S, F]."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.maps = nn.Sequential(nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, num_tokens))

    def forward(
        self,
        x: Tensor,  # [N, P, F]
    ) -> Tensor:  # [N, S, F]
        """The mixtures of each image."""
        weights: Tensor = self.maps(self.norm(x)).softmax(dim=1)  # [N, P, S]
        return weights.mT @ x


def add_token_learner(model: Any, num_tokens: int, name: str) -> None:
    """Puts a TokenLearner before the middle block of a ViT or EVA-02, in place, under the new name `token_learner`.

    Class and register tokens go past it. Blocks after it have no rotations (EVA-02): a mixture has no place.

    Raises:
        ValueError: another family.
    """
    require_plain_blocks(model, "learn_tokens", name)
    model.token_learner = TokenLearner(model.embed_dim, num_tokens)
    model.forward_features = MethodType(_forward_features, model)


def _forward_features(model: Any, x: Tensor, **_: Any) -> Tensor:
    x, rope = embed(model, x)
    first = model.num_prefix_tokens
    for depth, block in enumerate(model.blocks):
        if depth == len(model.blocks) // 2:
            x, rope = torch.cat([x[:, :first], model.token_learner(x[:, first:])], dim=1), None
        x = block(x) if rope is None else block(x, rope=rope)
    return model.norm(x)  # type: ignore[no-any-return]
