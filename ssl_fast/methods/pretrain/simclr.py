"""SimCLR: pull the two views of an image together, push all others in the batch away.

    z = projector(backbone(view)),   loss = NT-Xent(z1, z2; temperature)

With `decoupled=true` the positive is no part of its own denominator (DCL), which serves small batches. With
`num_views=4` every view finds the three others of its image (DCL: the mean over all pairs of views): at equal cost half
the images a step, which serves short runs and small data sets.

Reference: Chen et al. 2020, arXiv:2002.05709 (Algorithm 1; appendix A for views, appendix B.9 for CIFAR-10).
Yeh et al. 2022, arXiv:2110.06848, L_DC of Section 3 (`decoupled`). Fort et al. 2021, arXiv:2105.13343 (several views).
"""

from dataclasses import dataclass, field
from itertools import combinations

import torch
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
    num_views: int = 2  # of each image
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
        if config.num_views < 2:
            raise ValueError(f"method.num_views: expected 2 or more, got {config.num_views}")
        return (config.view,) * config.num_views

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z = self.through(self.projector, self.through(self.backbone, batch.views))
        return {f"z{view}": rows for view, rows in enumerate(z, 1)}  # each [N, D]

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        z = list(embeddings.values())
        if not self.config.decoupled:
            return {"loss": nt_xent(*z, temperature=self.config.temperature, group=self.group)}
        pairs = list(combinations(z, 2))
        losses = [dcl(a, b, temperature=self.config.temperature, group=self.group) for a, b in pairs]
        return {"loss": torch.stack(losses).mean()}
