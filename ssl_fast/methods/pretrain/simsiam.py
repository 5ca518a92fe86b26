"""SimSiam: predict one view's embedding from the other's, through a stop-gradient; no negatives and no teacher.

    loss = D(p1, z2) / 2 + D(p2, z1) / 2,   D(p, z) = -cos(p, stop-gradient(z))

Reference: Chen and He 2021, arXiv:2011.10566 (Eq. 1 to 4; section 3, "Baseline settings").
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ssl_fast.data.view_presets import moco_v2
from ssl_fast.data.views import Batch, View
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import mlp
from ssl_fast.ops.byol import simsiam_loss
from ssl_fast.optim.config import OptimizerConfig


@dataclass
class SimSiamConfig:
    """Defaults: ImageNet, batch 512, 100 epochs (section 3; views: appendix A)."""

    name: str = "simsiam"
    hidden_dim: int = 2048
    predictor_hidden_dim: int = 512  # a bottleneck
    dim: int = 2048
    fixed_predictor_lr: bool = True  # the predictor's rate does not decay: table 1 (c)
    norm: str = "batch"
    view: View = field(default_factory=lambda: moco_v2()[0])
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="sgd", lr=0.05, weight_decay=1e-4, warmup_epochs=0)
    )


class SimSiam(Method):
    """SimSiam with a three-layer projector and a two-layer predictor.

    The projector's last normalisation has no scales and shifts, as in the authors' code. Biases and norms do not decay,
    as with the other methods here; the authors' code lets them.
    """

    Config = SimSiamConfig
    config: SimSiamConfig
    collapse_cause = (
        "keep batch normalisation in the heads (method.norm=batch, more images a rank) and the predictor's rate "
        "constant (method.fixed_predictor_lr=true), or lower the learning rate"
    )

    def __init__(self, config: SimSiamConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        hidden, dim = config.hidden_dim, config.dim
        sizes = (backbone.num_features, hidden, hidden, dim)
        self.projector = mlp(sizes, norm=config.norm, last_norm=True, last_affine=False)
        self.predictor = mlp((dim, config.predictor_hidden_dim, dim), norm=config.norm)

    @staticmethod
    def views(config: SimSiamConfig) -> tuple[View, ...]:
        return (config.view, config.view)

    def group_options(self, name: str, parameter: nn.Parameter) -> dict[str, Any]:
        fixed = self.config.fixed_predictor_lr and name.startswith("predictor.")
        return {"fixed_lr": True} if fixed else {}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = self.through(self.projector, self.through(self.backbone, batch.views))
        p1, p2 = self.through(self.predictor, (z1, z2))
        return {"z1": z1, "z2": z2, "p1": p1, "p2": p2}  # each [N, D]

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        one = simsiam_loss(embeddings["p1"], embeddings["z2"], group=self.group)
        other = simsiam_loss(embeddings["p2"], embeddings["z1"], group=self.group)
        return {"loss": (one + other) / 2}
