"""Barlow Twins: each dimension of one view correlates with itself in the other view, and with no other dimension.

    z = projector(backbone(view)),   loss = sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2

with C the cross-correlation of z1 and z2 over the whole batch.

Reference: Zbontar et al. 2021, arXiv:2103.03230 (Eq. 1 and 2; section 2.2 for the hyper-parameters).
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ssl_fast.data.views import Batch, View
from ssl_fast.methods.asymmetric_views import AsymmetricViews
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import mlp
from ssl_fast.ops.barlow_twins import barlow_twins
from ssl_fast.optim.config import OptimizerConfig


@dataclass
class BarlowTwinsConfig(AsymmetricViews):
    """Defaults: ImageNet, 1,000 epochs, batch 2,048 (section 2.2), and BYOL's views."""

    name: str = "barlow_twins"
    lambd: float = 0.0051  # the authors' code; the paper rounds it to 0.005
    hidden_dim: int = 8192
    dim: int = 8192
    norm: str = "batch"
    # rates of 0.2 for weights and 0.0048 for biases and norms, which LARS does not adapt (section 2.2)
    bias_lr_scale: float = 0.024
    optimizer: OptimizerConfig = field(
        # final_lr: "reduced by a factor of 1000"; weight decay: the authors' code (the paper has 1.5e-6)
        default_factory=lambda: OptimizerConfig(
            name="lars", lr=0.2, final_lr=0.001, weight_decay=1e-6, warmup_epochs=10
        )
    )


class BarlowTwins(Method):
    """Barlow Twins with a three-layer projector; no negatives, teacher or predictor."""

    Config = BarlowTwinsConfig
    config: BarlowTwinsConfig
    collapse_cause = (
        "the loss grows with method.dim and so do gradients: use method.optimizer.name=lars, or lower the learning rate"
    )

    def __init__(self, config: BarlowTwinsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        sizes = (backbone.num_features, config.hidden_dim, config.hidden_dim, config.dim)
        self.projector = mlp(sizes, norm=config.norm, last_bias=False)

    @staticmethod
    def views(config: BarlowTwinsConfig) -> tuple[View, ...]:
        return config.two_views()

    def group_options(self, name: str, parameter: nn.Parameter) -> dict[str, Any]:
        return {"lr_scale": self.config.bias_lr_scale} if parameter.ndim == 1 else {}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = self.through(self.projector, self.through(self.backbone, batch.views))
        return {"z1": z1, "z2": z2}  # each [N, D]

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        z1, z2 = embeddings["z1"], embeddings["z2"]
        return {"loss": barlow_twins(z1, z2, lambd=self.config.lambd, group=self.group)}
