"""DINO: a student predicts, from every view, what its slowly moving teacher makes of the global ones.

    loss = mean over the pairs t != s of views of  - sum_k p_tk log q_sk,
    p_t = softmax((y_t w'^T - centre) / teacher temperature),   q_s = softmax(z_s w^T / student temperature)

with z, y the unit rows of the heads of student and teacher, and w, w' the unit prototypes of their last layers. With
`centering=sinkhorn` the teacher's assignments are balanced over the batch instead (DINOv2).

Reference: Caron et al. 2021, arXiv:2104.14294 (Algorithm 1; section 3.2 and appendix C for the hyper-parameters); Oquab
et al. 2023, arXiv:2304.07193, section 4 (Sinkhorn-Knopp).

Where this differs from the authors' code: the temperature and the learning rate move with every step, not every epoch;
gradients are clipped together (`train.clip_grad_norm`), not each parameter's by itself; a linear layer that batch
normalisation follows has no bias.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssl_fast.data.views import Batch, View
from ssl_fast.methods.asymmetric_views import MultiCrop
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import DINOHead
from ssl_fast.models.teacher import Teacher
from ssl_fast.ops.dino import DINOCenter, dino_loss
from ssl_fast.optim.config import OptimizerConfig
from ssl_fast.optim.schedule import cosine_momentum

NUM_GLOBAL = 2  # views that the teacher sees
CENTERINGS = ("mean", "sinkhorn")


@dataclass
class DINOConfig(MultiCrop):
    """Defaults: ViT on ImageNet, 2 x 224 + 8 x 96 pixels (section 3.2, appendix C); shares are of 100 epochs."""

    name: str = "dino"
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    first_teacher_temperature: float = 0.04
    temperature_warmup: float = 0.3  # share of the run in which the teacher's rises: 30 epochs of 100
    centering: str = "mean"  # mean | sinkhorn
    center_momentum: float = 0.9
    momentum: float = 0.996  # rises to 1 along a cosine
    freeze_last_layer: float = 0.01  # share of the run in which the prototypes stay: one epoch of 100
    learn_gain: bool = False  # of the prototypes: `norm_last_layer false` in the authors' code
    num_prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    norm: str = "none"  # the head's
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            name="adamw", lr=0.0005, final_lr=0.002, weight_decay=0.04, final_weight_decay=0.4, warmup_epochs=10
        )
    )

    def __post_init__(self) -> None:
        if self.centering not in CENTERINGS:
            raise ValueError(f"method.centering: expected {' or '.join(CENTERINGS)}, got {self.centering!r}")


class DINO(Method):
    """DINO on any backbone, with a teacher of backbone and head, without stochastic depth."""

    Config = DINOConfig
    config: DINOConfig
    collapse_cause = "lower method.teacher_temperature or the learning rate, or freeze the last layer for longer"

    def __init__(self, config: DINOConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.head = DINOHead(
            backbone.num_features,
            config.hidden_dim,
            config.bottleneck_dim,
            config.num_prototypes,
            norm=config.norm,
            learn_gain=config.learn_gain,
        )
        self.teacher = Teacher(nn.Sequential(self.backbone, self.head))
        self.center = DINOCenter(config.num_prototypes, config.center_momentum)
        self.find_unused_parameters = config.freeze_last_layer > 0
        self._rows: Tensor | None = None

    @staticmethod
    def views(config: DINOConfig) -> tuple[View, ...]:
        return config.crops()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        rows = self.through(self.head, self.through(self.backbone, batch.views))
        return {"z": torch.stack(rows, 1)}  # [N, V, D]

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        return {"y": torch.stack(self.through(self.teacher, batch.views[:NUM_GLOBAL]), 1)}  # [N, 2, D]

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        config, prototypes = self.config, self.head.prototypes()
        self._rows = embeddings["y"].transpose(0, 1)  # [2, N, D]
        loss = dino_loss(
            embeddings["z"].transpose(0, 1),
            self._rows,
            prototypes.detach() if progress < config.freeze_last_layer else prototypes,
            self._teacher_prototypes(),
            student_temperature=config.student_temperature,
            teacher_temperature=self.teacher_temperature(progress),
            center=self.center.value if config.centering == "mean" else "sinkhorn",
            group=self.group,
        )
        return {"loss": loss}

    def after_step(self, progress: float) -> None:
        assert self._rows is not None
        self.center.update_(self._rows, self._teacher_prototypes(), group=self.group)
        self._rows = None
        momentum = cosine_momentum(progress, self.config.momentum)
        self.teacher.update_(nn.Sequential(self.backbone, self.head), momentum)

    def teacher_temperature(self, progress: float) -> float:
        """Rises along a line over the first `temperature_warmup` of the run."""
        config = self.config
        risen = min(progress / config.temperature_warmup, 1.0) if config.temperature_warmup > 0 else 1.0
        return config.first_teacher_temperature + risen * (
            config.teacher_temperature - config.first_teacher_temperature
        )

    def _teacher_prototypes(self) -> Tensor:  # [K, D]
        network: Any = self.teacher.module
        with torch.no_grad():
            prototypes: Tensor = network[1].prototypes()
        return prototypes
