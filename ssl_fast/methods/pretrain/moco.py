"""MoCo v2: contrast a query with its key and a queue of earlier keys from a slowly moving teacher.

    q = projector(backbone(view 1)),  k = teacher(view 2),  loss = InfoNCE(q, k, queue; temperature)

Reference: He et al. 2019, arXiv:1911.05722 (Algorithm 1); Chen et al. 2020, arXiv:2003.04297 (v2: projector, views).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssl_fast.data.view_presets import moco_v2
from ssl_fast.data.views import Batch, View
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import mlp
from ssl_fast.models.teacher import Teacher
from ssl_fast.ops.info_nce import info_nce
from ssl_fast.ops.moco_queue import MoCoQueue
from ssl_fast.optim.config import OptimizerConfig


@dataclass
class MoCoConfig:
    """Defaults: v2 on ImageNet, batch 256 (arXiv:2003.04297, section 3); queue and momentum of v1, section 4."""

    name: str = "moco"
    temperature: float = 0.2
    momentum: float = 0.999
    queue_size: int = 65536
    hidden_dim: int = 2048
    dim: int = 128
    norm: str = "none"  # v2's projector has no normalisation
    view: View = field(default_factory=lambda: moco_v2()[0])
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="sgd", lr=0.03, weight_decay=1e-4, warmup_epochs=0)
    )


class MoCo(Method):
    """MoCo v2.

    The keys' batch statistics are their own rank's (and their own view's): the paper's shuffling of samples between
    GPUs is not done, so on several GPUs prefer networks without batch statistics or `train.sync_batchnorm`.
    """

    Config = MoCoConfig
    config: MoCoConfig

    def __init__(self, config: MoCoConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.projector = mlp((backbone.num_features, config.hidden_dim, config.dim), norm=config.norm)
        self.teacher = Teacher(nn.Sequential(self.backbone, self.projector))
        self.queue = MoCoQueue(config.queue_size, config.dim)
        self._keys: Tensor | None = None

    @staticmethod
    def views(config: MoCoConfig) -> tuple[View, ...]:
        return (config.view, config.view)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return {"q": self.projector(self.backbone(batch.views[0]))}  # [N, D]

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"k": self.teacher(batch.views[1])}  # [N, D]

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        self._keys = embeddings["k"].detach()
        loss = info_nce(
            embeddings["q"],
            self._keys,
            self.queue.rows,
            temperature=self.config.temperature,
            group=self.group,
        )
        return {"loss": loss}

    def after_step(self, progress: float) -> None:
        # Algorithm 1 moves the teacher before the keys of the next step are made, and enqueues after the update.
        assert self._keys is not None
        self.queue.enqueue_(self._keys, group=self.group)
        self._keys = None
        self.teacher.update_(nn.Sequential(self.backbone, self.projector), self.config.momentum)
