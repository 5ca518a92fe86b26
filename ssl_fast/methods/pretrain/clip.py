"""CLIP: find the text of each image among all texts of the batch, and the image of each text.

    loss = clip_loss(u, v; exp(t)),   u = P backbone(view),   v = text(tokens)

Reference: Radford et al. 2021, arXiv:2103.00020 (Fig. 3; section 2.5 and tables 18, 19 for the numbers).
"""

from dataclasses import dataclass

from torch import Tensor

from ssl_fast.data.views import Batch
from ssl_fast.methods.two_towers import TwoTowers, TwoTowersConfig
from ssl_fast.ops.clip_loss import clip_loss


@dataclass
class CLIPConfig(TwoTowersConfig):
    """Defaults: the paper's (`TwoTowersConfig`)."""

    name: str = "clip"


class CLIP(TwoTowers):
    """Two towers under a softmax over all pairs, both ways."""

    Config = CLIPConfig

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        scale = self.log_scale.exp()
        loss = clip_loss(embeddings["image"], embeddings["text"], scale, group=self.group)
        return {"loss": loss, "logit_scale": scale}
