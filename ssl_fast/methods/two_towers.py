"""What CLIP and SigLIP share: a tower for images, a tower for texts, and a learned scale of their cosines.

    u = P backbone(view),   v = text(tokens),   logits_ij = exp(t) cos(u_i, v_j)

A method adds its loss over the pairs of all ranks. Letters: N pairs, D embedding, F feature, L tokens of a text.

Reference: Radford et al. 2021, arXiv:2103.00020, section 2.4, Fig. 3. A frozen backbone is LiT: Zhai et al. 2021,
arXiv:2111.07991 (the setting "Lu").
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ssl_fast.data.views import Batch, View
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.text import TextConfig, TextTower, Tokenizer
from ssl_fast.models.towers import save_towers
from ssl_fast.optim.config import OptimizerConfig

MAX_LOG_SCALE = math.log(100)  # CLIP, section 2.5: logits are never scaled by more than 100


def square_crop() -> View:
    """CLIP's only augmentation, a random square crop (section 2.4), here of half the image's area or more.

    Where none fits, as in long pictures, it is the central square.
    """
    return View(crop_scale=(0.5, 1.0), crop_ratio=(1.0, 1.0), interpolation="bicubic", flip=0.0)


@dataclass
class TwoTowersConfig:
    """What the methods share; the defaults are CLIP's (table 18, ViT-B/32), for a batch of 32,768."""

    name: str = ""
    dim: int = 512
    scale: float = 1 / 0.07  # exp(t) at first
    freeze_backbone: bool = False  # learn a text tower for the features that `backbone.weights` brings
    text: TextConfig = field(default_factory=TextConfig)
    view: View = field(default_factory=square_crop)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            name="adamw",
            lr=5e-4,
            lr_scaling="none",
            betas=(0.9, 0.98),
            epsilon=1e-6,  # with these the values for transformers
            weight_decay=0.2,
            warmup_epochs=0.16,  # 2,000 steps, of 400 million pairs
        )
    )


class TwoTowers(Method):
    """Backbone and linear projection for images, a transformer for texts, and the logarithm of the scale.

    Raises:
        ValueError: a setting is out of its range.
        ImportError: open_clip is not installed.
    """

    config: Any

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        if config.dim < 1 or not 1 <= config.scale <= 100:
            raise ValueError(
                f"method.dim, method.scale: expected dim >= 1 and 1 <= scale <= 100, got {config.dim}, {config.scale}"
            )
        self.image_projection = nn.Linear(backbone.num_features, config.dim, bias=False)
        nn.init.normal_(self.image_projection.weight, std=backbone.num_features**-0.5)
        self.text_tower = TextTower(config.text, config.dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        backbone.requires_grad_(not config.freeze_backbone)

    @staticmethod
    def views(config: Any) -> tuple[View, ...]:
        """One view of the image."""
        return (config.view,)

    @staticmethod
    def tokenizer(config: Any) -> Tokenizer:
        """The text tower's."""
        return Tokenizer(config.text)

    def train(self, mode: bool = True) -> Self:
        """A frozen backbone stays in evaluation mode: its batch statistics do not move either."""
        super().train(mode)
        if self.config.freeze_backbone:
            self.backbone.eval()
        return self

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Rows "image" and "text", each [N, D], not normalised."""
        if "tokens" not in batch.extras:
            raise ValueError("batch: expected tokens of captions, [N, L] in batch.extras, got none")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            features = self.backbone(batch.views[0])
        return {"image": self.image_projection(features), "text": self.text_tower(batch.extras["tokens"])}  # [N, D]

    def after_step(self, progress: float) -> None:
        """Keeps the scale between 1 and 100."""
        with torch.no_grad():
            self.log_scale.clamp_(0.0, MAX_LOG_SCALE)

    def save(self, folder: Path) -> list[str]:
        """Image projection and text tower."""
        return save_towers(folder, self.image_projection, self.text_tower)
