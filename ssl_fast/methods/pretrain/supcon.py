"""SupCon: pull all views of all images of a class together, push those of other classes away.

    z = projector(backbone(view)),   loss = SupCon(z of both views, labels; temperature)

The only method here that needs labels. An image whose label is `ignore_index` takes no part in the loss.

Reference: Khosla et al. 2020, arXiv:2004.11362 (Eq. 2; section 3 for the networks, section 4 for the training).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssl_fast.data.view_presets import simclr
from ssl_fast.data.views import Batch, View
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import mlp
from ssl_fast.ops.supcon import supcon
from ssl_fast.optim.config import OptimizerConfig


@dataclass
class SupConConfig:
    """Defaults: ImageNet, batch 6,144 (section 4), with the projector of section 3.2 and SimCLR's views.

    The authors' script for ImageNet takes a single linear layer on unit features, and AutoAugment.
    """

    name: str = "supcon"
    temperature: float = 0.1
    ignore_index: int = -1  # the label of images whose class is not known
    hidden_dim: int = 2048
    dim: int = 128
    norm: str = "none"  # the paper's projector has no normalisation
    view: View = field(default_factory=lambda: simclr()[0])
    optimizer: OptimizerConfig = field(
        # The authors' script for ImageNet. Its decay is 1e-3 beside a loss times the temperature: to LARS that is this.
        default_factory=lambda: OptimizerConfig(name="lars", lr=0.4, weight_decay=1e-2, warmup_epochs=12)
    )


class SupCon(Method):
    """SupCon with a two-layer projector.

    Raises:
        ValueError: in `loss`, on a data set without labels or with several a sample.
    """

    Config = SupConConfig
    config: SupConConfig
    collapse_cause = "check that the labels differ between images, or lower the learning rate"

    def __init__(self, config: SupConConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.projector = mlp((backbone.num_features, config.hidden_dim, config.dim), norm=config.norm)

    @staticmethod
    def views(config: SupConConfig) -> tuple[View, ...]:
        return (config.view, config.view)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = self.through(self.projector, self.through(self.backbone, batch.views))
        return {"z1": z1, "z2": z2}  # each [N, D]

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        if batch.labels is None or batch.labels.ndim != 1:
            got = "none" if batch.labels is None else "several"
            raise ValueError(f"data: expected a data set with labels for method=supcon, one a sample, got {got}")
        z = torch.stack((embeddings["z1"], embeddings["z2"]), dim=1)  # [N, 2, D]
        config = self.config
        loss = supcon(
            z, batch.labels, temperature=config.temperature, ignore_index=config.ignore_index, group=self.group
        )
        return {"loss": loss}
