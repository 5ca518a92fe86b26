"""BYOL: predict the teacher's projection of one view from the other; no negatives.

    loss = d(p(z1), z2') + d(p(z2), z1'),   d(p, z') = || p/|p| - z'/|z'| ||^2 = 2 - 2 cos(p, z')

Reference: Grill et al. 2020, arXiv:2006.07733 (Eq. 2 and the symmetrised loss below it; section 3.3 for the
hyper-parameters, table 6 for the views). Much public code halves the sum, which matters to optimisers other than LARS.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssl_fast.data.views import Batch, View
from ssl_fast.methods.asymmetric_views import AsymmetricViews
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import mlp
from ssl_fast.models.teacher import Teacher
from ssl_fast.ops.byol import byol_loss
from ssl_fast.optim.config import OptimizerConfig
from ssl_fast.optim.schedule import cosine_momentum


@dataclass
class BYOLConfig(AsymmetricViews):
    """Defaults: ImageNet, 1,000 epochs, batch 4,096 (section 3.3)."""

    name: str = "byol"
    momentum: float = 0.996  # rises to 1 along a cosine
    hidden_dim: int = 4096
    dim: int = 256
    norm: str = "batch"
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="lars", lr=0.2, weight_decay=1.5e-6, warmup_epochs=10)
    )


class BYOL(Method):
    """BYOL with a two-layer projector and predictor and a teacher of backbone and projector."""

    Config = BYOLConfig
    config: BYOLConfig

    def __init__(self, config: BYOLConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.projector = mlp((backbone.num_features, config.hidden_dim, config.dim), norm=config.norm)
        self.predictor = mlp((config.dim, config.hidden_dim, config.dim), norm=config.norm)
        self.teacher = Teacher(nn.Sequential(self.backbone, self.projector))

    @staticmethod
    def views(config: BYOLConfig) -> tuple[View, ...]:
        return config.two_views()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z = self.through(self.projector, self.through(self.backbone, batch.views))
        p1, p2 = self.through(self.predictor, z)
        return {"p1": p1, "p2": p2}  # each [N, D]

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            z1, z2 = self.through(self.teacher, batch.views)
        return {"z1": z1, "z2": z2}  # each [N, D]

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        one = byol_loss(embeddings["p1"], embeddings["z2"], group=self.group)
        other = byol_loss(embeddings["p2"], embeddings["z1"], group=self.group)
        return {"loss": one + other}

    def after_step(self, progress: float) -> None:
        momentum = cosine_momentum(progress, self.config.momentum)
        self.teacher.update_(nn.Sequential(self.backbone, self.projector), momentum)
