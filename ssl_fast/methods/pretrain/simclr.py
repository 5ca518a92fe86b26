"""SimCLR: pull the two views of an image together, push all others in the batch away.

    z = projector(backbone(view)),   loss = NT-Xent(z1, z2; temperature)

With `decoupled=true` the positive is no part of its own denominator (DCL), which serves small batches.

Reference: Chen et al. 2020, arXiv:2002.05709 (Algorithm 1; appendix A for views, appendix B.9 for CIFAR-10).
Yeh et al. 2022, arXiv:2110.06848, L_DC of Section 3 (`decoupled`).
"""

from dataclasses import dataclass, field

from torch import Tensor

from ssl_fast.data.view_presets import simclr
from ssl_fast.data.views import Batch, View
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import mlp
from ssl_fast.ops.dcl import dcl
from ssl_fast.ops.nt_xent import nt_xent
from ssl_fast.optim.config import OptimizerConfig


@dataclass
class SimCLRConfig:
    """Defaults: section 2.2 and table B.1 (temperature), ImageNet, batch 4,096."""

    name: str = "simclr"
    temperature: float = 0.1
    decoupled: bool = False
    hidden_dim: int = 2048
    dim: int = 128
    norm: str = "batch"  # the projector's; "group" and "none" for exactness across ranks and microbatches
    view: View = field(default_factory=lambda: simclr()[0])
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="lars", lr=0.3, weight_decay=1e-6, warmup_epochs=10)
    )


class SimCLR(Method):
    """SimCLR with a two-layer projector (the paper's g, batch-normalised as in the authors' code)."""

    Config = SimCLRConfig
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.projector = mlp((backbone.num_features, config.hidden_dim, config.dim), norm=config.norm, last_norm=True)

    @staticmethod
    def views(config: SimCLRConfig) -> tuple[View, ...]:
        return (config.view, config.view)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        features = self.through(self.backbone, batch.views)
        z1, z2 = self.through(self.projector, features)
        return {"z1": z1, "z2": z2}  # each [N, D]

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        z1, z2 = embeddings["z1"], embeddings["z2"]
        contrast = dcl if self.config.decoupled else nt_xent
        return {"loss": contrast(z1, z2, temperature=self.config.temperature, group=self.group)}
