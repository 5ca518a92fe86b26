"""SigLIP: tell for every image and every text of the batch whether they belong together; no softmax.

    loss = siglip_loss(u, v; exp(t), b),   u = P backbone(view),   v = text(tokens)

Reference: Zhai et al. 2023, arXiv:2303.15343 (section 3.2, Algorithm 1). The paper's tokenizer is a sentencepiece model
that would have to be downloaded: texts are read by CLIP's instead.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssl_fast.data.views import Batch
from ssl_fast.methods.two_towers import TwoTowers, TwoTowersConfig
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.text import TextConfig
from ssl_fast.ops.siglip_loss import siglip_loss
from ssl_fast.optim.config import OptimizerConfig


@dataclass
class SigLIPConfig(TwoTowersConfig):
    """Defaults: scale and bias of section 3.2; ViT-B/16 at a batch of 32,768.

    The text tower is that of the released B/16 models (64 tokens, all of which see each other, read at the last).
    """

    name: str = "siglip"
    dim: int = 768
    scale: float = 10.0
    bias: float = -10.0  # most pairs do not belong together: so the first steps need not learn that
    text: TextConfig = field(
        default_factory=lambda: TextConfig(width=768, heads=12, context_length=64, causal=False, pool="last")
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            name="adamw",
            lr=1e-3,
            lr_scaling="none",
            betas=(0.9, 0.95),
            weight_decay=0.1,  # the authors' 1e-4 is not multiplied by the rate, as AdamW's is
            warmup_epochs=0.16,
        )
    )


class SigLIP(TwoTowers):
    """Two towers under a sigmoid for each pair, with a learned bias."""

    Config = SigLIPConfig

    def __init__(self, config: SigLIPConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.bias = nn.Parameter(torch.tensor(float(config.bias)))

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        scale = self.log_scale.exp()
        loss = siglip_loss(embeddings["image"], embeddings["text"], scale, self.bias, group=self.group)
        return {"loss": loss, "logit_scale": scale, "logit_bias": self.bias}
