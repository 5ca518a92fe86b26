"""NNCLR: the positive of a view is the nearest neighbour of the other view in a queue of earlier embeddings.

    loss = L(nn(z1), p2) / 2 + L(nn(z2), p1) / 2,   L(n, p) = InfoNCE of n against the p of all samples

with z = projector(backbone(view)), p = predictor(z), and nn(z) the row of the queue that is nearest to z.

Reference: Dwibedi et al. 2021, arXiv:2104.14548 (Eq. 3 and 5, Algorithm 1; section 4.1 for the hyper-parameters).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssl_fast.data.view_presets import simclr
from ssl_fast.data.views import Batch, View
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import mlp
from ssl_fast.ops.info_nce import info_nce
from ssl_fast.ops.moco_queue import MoCoQueue
from ssl_fast.optim.config import OptimizerConfig


@dataclass
class NNCLRConfig:
    """Defaults: ImageNet, 1,000 epochs, batch 4,096 (section 4.1)."""

    name: str = "nnclr"
    temperature: float = 0.1
    queue_size: int = 98304
    hidden_dim: int = 2048
    predictor_hidden_dim: int = 4096
    dim: int = 256
    norm: str = "batch"
    view: View = field(default_factory=lambda: simclr()[0])
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="lars", lr=0.3, weight_decay=1e-6, warmup_epochs=10)
    )


class NNCLR(Method):
    """NNCLR with a three-layer projector, a two-layer predictor and a queue of the first view's embeddings.

    Every rank holds the same queue: it takes in the embeddings of all ranks, in the order of the global batch. Its rows
    are bf16 unit vectors.
    """

    Config = NNCLRConfig
    config: NNCLRConfig
    collapse_cause = (
        "a queue of few samples gives all the same neighbour: raise method.queue_size, or lower the learning rate"
    )

    def __init__(self, config: NNCLRConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        sizes = (backbone.num_features, config.hidden_dim, config.hidden_dim, config.dim)
        self.projector = mlp(sizes, norm=config.norm, last_norm=True)
        self.predictor = mlp((config.dim, config.predictor_hidden_dim, config.dim), norm=config.norm)
        self.queue = MoCoQueue(config.queue_size, config.dim)
        self._fresh: Tensor | None = None

    @staticmethod
    def views(config: NNCLRConfig) -> tuple[View, ...]:
        return (config.view, config.view)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = self.through(self.projector, self.through(self.backbone, batch.views))
        p1, p2 = self.through(self.predictor, (z1, z2))
        return {"z1": z1, "z2": z2, "p1": p1, "p2": p2}  # each [N, D]

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        z1, z2, p1, p2 = (embeddings[name] for name in ("z1", "z2", "p1", "p2"))
        self._fresh = z1.detach()
        one, other = (
            info_nce(nearest(z, self.queue.rows), p, temperature=self.config.temperature, group=self.group)
            for z, p in ((z1, p2), (z2, p1))
        )
        return {"loss": (one + other) / 2}

    def after_step(self, progress: float) -> None:
        assert self._fresh is not None
        self.queue.enqueue_(self._fresh, group=self.group)
        self._fresh = None


@torch.no_grad()
def nearest(
    z: Tensor,  # [N, D]
    rows: Tensor,  # [K, D] unit vectors
) -> Tensor:  # [N, D]
    """The row that each z has the largest cosine with, in the dtype of z (at least fp32), without a gradient.

    One product and its largest entries: `knn_topk` would sort all K similarities of a row on a GPU.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    rows = rows.to(dtype)
    with torch.autocast(z.device.type, enabled=False):  # bf16 similarities would tie
        return rows[(z.to(dtype) @ rows.T).argmax(1)]
