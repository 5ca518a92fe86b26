"""SwAV: predict, from each view, to which prototypes another view of the image was assigned.

    z_v = normalize(projector(backbone(view v))),   q_a = sinkhorn(z_a w^T; epsilon) for the global views a,
    loss = mean over the pairs a != v of  - sum_k q_ak log softmax_k(z_v w^T / temperature)

Reference: Caron et al. 2020, arXiv:2006.09882 (Eq. 2 to 6; section 3.3 for multi-crop, appendix A for the queue and the
hyper-parameters).

Where this differs from the authors' code: the queue fills from the first step on, not from the step at which it joins;
prototypes are scaled to unit length after a step and not before it; biases and norms do not decay, nor does LARS adapt
their rate.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast import distributed
from ssl_fast.data.view_presets import swav
from ssl_fast.data.views import Batch, View
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import mlp
from ssl_fast.ops.moco_queue import MoCoQueue
from ssl_fast.ops.swav import swav_loss
from ssl_fast.optim.config import OptimizerConfig

NUM_GLOBAL = 2  # views that give assignments


@dataclass
class SwAVConfig:
    """Defaults: ImageNet, batch 4,096, 2 x 224 + 6 x 96 pixels (section 3.3 and the authors' code)."""

    name: str = "swav"
    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    num_prototypes: int = 3000
    freeze_prototypes: float = 0.005  # share of the run in which they stay: one epoch of 200
    queue_size: int = 0  # rows of each global view, 3,840 in the paper for batches of 256; 0: no queue
    queue_start: float = 0.075  # share of the run after which it joins: 15 epochs of 200
    hidden_dim: int = 2048
    dim: int = 128
    norm: str = "batch"
    num_local: int = 6
    local_size: int = 0  # pixels; 0: 3/7 of the global views'
    local_scale: tuple[float, float] = field(default_factory=lambda: swav()[-1].crop_scale)
    view: View = field(default_factory=lambda: swav()[0])
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            name="lars", lr=0.3, final_lr=0.001, weight_decay=1e-6, warmup_epochs=10
        )
    )


class SwAV(Method):
    """SwAV with a two-layer projector; assignments are balanced over the samples of all ranks.

    The queue's first rows are random unit vectors: choose `queue_start` so that queue_size samples come before it.
    """

    Config = SwAVConfig
    config: SwAVConfig
    collapse_cause = "lower the learning rate or method.epsilon, or freeze the prototypes for longer"

    def __init__(self, config: SwAVConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.projector = mlp((backbone.num_features, config.hidden_dim, config.dim), norm=config.norm)
        self.prototypes = nn.Linear(config.dim, config.num_prototypes, bias=False)
        self.queues: Any = nn.ModuleList(
            MoCoQueue(config.queue_size, config.dim, torch.float32)
            for _ in range(NUM_GLOBAL if config.queue_size else 0)
        )
        self.find_unused_parameters = config.freeze_prototypes > 0
        self._rows: Tensor | None = None
        self._scale_prototypes()

    @staticmethod
    def views(config: SwAVConfig) -> tuple[View, ...]:
        size = config.local_size or config.view.size * 3 // 7
        local = replace(config.view, name="local", size=size, crop_scale=config.local_scale)
        return (config.view,) * NUM_GLOBAL + (local,) * config.num_local

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        rows = self.through(self.projector, self.through(self.backbone, batch.views))
        z = torch.stack(rows, 1)
        return {"z": F.normalize(z, dim=-1).to(z.dtype)}  # [N, V, D]; autocast normalises in fp32 on a GPU

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        config, weight = self.config, self.prototypes.weight
        z = embeddings["z"].transpose(0, 1)  # [V, N, D]
        self._rows = z[:NUM_GLOBAL].detach()
        loss = swav_loss(
            z,
            weight.detach() if progress < config.freeze_prototypes else weight,
            num_assign=NUM_GLOBAL,
            temperature=config.temperature,
            epsilon=config.epsilon,
            iterations=config.sinkhorn_iterations,
            queue=self._earlier() if self.queues and progress >= config.queue_start else None,
            group=self.group,
        )
        return {"loss": loss}

    def after_step(self, progress: float) -> None:
        assert self._rows is not None
        for queue, rows in zip(self.queues, self._rows, strict=False):
            queue.enqueue_(rows, group=self.group)
        self._rows = None
        self._scale_prototypes()

    def _earlier(self) -> Tensor:  # [2, Q, D]
        """This rank's part of the queues: each row is balanced once, on whichever rank."""
        rank, ranks = distributed.rank(), distributed.world_size()
        return torch.stack([queue.rows[rank::ranks] for queue in self.queues])

    @torch.no_grad()
    def _scale_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
