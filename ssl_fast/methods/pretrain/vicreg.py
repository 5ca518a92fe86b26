"""VICReg: two views agree, every dimension keeps its spread over the batch, and dimensions do not vary together.

    z = projector(backbone(view)),   loss = 25 s(z1, z2) + 25 (v(z1) + v(z2)) + c(z1) + c(z2)

with the invariance s, variance v and covariance c of `ssl_fast.ops.vicreg`; the projector is the paper's expander.

Reference: Bardes et al. 2022, arXiv:2105.04906 (Eq. 1 to 6; section 4.2 and appendix C for the hyper-parameters).
"""

from dataclasses import dataclass, field

from torch import Tensor

from ssl_fast.data.views import Batch, View
from ssl_fast.methods.asymmetric_views import AsymmetricViews
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import mlp
from ssl_fast.ops.vicreg import vicreg
from ssl_fast.optim.config import OptimizerConfig


@dataclass
class VICRegConfig(AsymmetricViews):
    """Defaults: ImageNet, 1,000 epochs, batch 2,048 (section 4.2)."""

    name: str = "vicreg"
    invariance: float = 25.0
    variance: float = 25.0  # the authors' code halves this term: 12.5 for theirs
    covariance: float = 1.0
    hidden_dim: int = 8192
    dim: int = 8192
    norm: str = "batch"
    optimizer: OptimizerConfig = field(
        # final_lr: the authors' code (the paper's final rate of 0.002 is nearly the same)
        default_factory=lambda: OptimizerConfig(
            name="lars", lr=0.2, final_lr=0.001, weight_decay=1e-6, warmup_epochs=10
        )
    )


class VICReg(Method):
    """VICReg with a three-layer expander; no negatives, teacher or predictor."""

    Config = VICRegConfig
    config: VICRegConfig
    collapse_cause = "raise method.variance beside method.invariance, or lower the learning rate"

    def __init__(self, config: VICRegConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        sizes = (backbone.num_features, config.hidden_dim, config.hidden_dim, config.dim)
        self.projector = mlp(sizes, norm=config.norm, last_bias=False)

    @staticmethod
    def views(config: VICRegConfig) -> tuple[View, ...]:
        return config.two_views()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = self.through(self.projector, self.through(self.backbone, batch.views))
        return {"z1": z1, "z2": z2}  # each [N, D]

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        config = self.config
        loss = vicreg(
            embeddings["z1"],
            embeddings["z2"],
            invariance=config.invariance,
            variance=config.variance,
            covariance=config.covariance,
            group=self.group,
        )
        return {"loss": loss}
