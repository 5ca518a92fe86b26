"""MoCo v3: contrast predictions with a momentum teacher's keys of the whole batch, in both directions; no queue.

    loss = L(q1, k2) + L(q2, k1),   L(q, k) = 2 temperature InfoNCE(q, k of all samples; temperature)

with q = predictor(projector(backbone(view))) and k = teacher(view), a moving average of backbone and projector.

Reference: Chen et al. 2021, arXiv:2104.02057 (Algorithm 1; section 4.1; section 4.3 for the fixed patch projection).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssl_fast.data.view_presets import moco_v3
from ssl_fast.data.views import Batch, View
from ssl_fast.methods.asymmetric_views import AsymmetricViews
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import mlp
from ssl_fast.models.teacher import Teacher
from ssl_fast.ops.info_nce import info_nce
from ssl_fast.optim.config import OptimizerConfig
from ssl_fast.optim.schedule import cosine_momentum


@dataclass
class MoCoV3Config(AsymmetricViews):
    """Defaults: ViTs on ImageNet, batch 4,096, 300 epochs (section 4.1).

    The authors' settings of ResNet-50 are in the preset `mocov3_imagenet_resnet50`.
    """

    name: str = "mocov3"
    temperature: float = 0.2
    momentum: float = 0.99  # rises to 1 along a cosine
    fixed_patch_projection: bool = True  # of ViTs: random and not trained, for stability (section 4.3)
    projector_layers: int = 3  # 2 in the authors' code for ResNets
    hidden_dim: int = 4096
    dim: int = 256
    norm: str = "batch"
    view: View = field(default_factory=lambda: moco_v3()[0])
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="adamw", lr=1.5e-4, weight_decay=0.1, warmup_epochs=40)
    )


class MoCoV3(Method):
    """MoCo v3 with normalised projector and predictor, the last norm of each without scales and shifts.

    A ViT keeps timm's learned positions; the authors' have fixed ones.
    """

    Config = MoCoV3Config
    config: MoCoV3Config
    collapse_cause = (
        "ViTs become unstable at high rates: keep method.fixed_patch_projection=true, lower the learning rate or "
        "lengthen its warm-up"
    )

    def __init__(self, config: MoCoV3Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        if config.projector_layers < 2:
            raise ValueError(f"method.projector_layers: expected at least 2, got {config.projector_layers}")
        if config.fixed_patch_projection:
            fix_patch_projection(backbone)
        hidden = (config.hidden_dim,) * (config.projector_layers - 1)
        heads: dict[str, Any] = {"norm": config.norm, "last_norm": True, "last_affine": False}
        self.projector = mlp((backbone.num_features, *hidden, config.dim), **heads)
        self.predictor = mlp((config.dim, config.hidden_dim, config.dim), **heads)
        self.teacher = Teacher(nn.Sequential(self.backbone, self.projector))

    @staticmethod
    def views(config: MoCoV3Config) -> tuple[View, ...]:
        return config.two_views()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z = self.through(self.projector, self.through(self.backbone, batch.views))
        q1, q2 = self.through(self.predictor, z)
        return {"q1": q1, "q2": q2}  # each [N, D]

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            k1, k2 = self.through(self.teacher, batch.views)
        return {"k1": k1, "k2": k2}  # each [N, D]

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        temperature = self.config.temperature
        one = info_nce(embeddings["q1"], embeddings["k2"], temperature=temperature, group=self.group)
        other = info_nce(embeddings["q2"], embeddings["k1"], temperature=temperature, group=self.group)
        return {"loss": 2 * temperature * (one + other)}

    def after_step(self, progress: float) -> None:
        momentum = cosine_momentum(progress, self.config.momentum)
        self.teacher.update_(nn.Sequential(self.backbone, self.projector), momentum)


def fix_patch_projection(backbone: Backbone) -> None:
    """Takes the patch projection of a ViT out of the training; a network without one stays as it is.

    Without weights of its own it starts Xavier-uniform, as one linear map of a patch (the authors' code).
    """
    projection = getattr(getattr(backbone.model, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d):
        return
    if not (backbone.config.pretrained or backbone.config.weights):
        bound = (6 / (projection.weight[0].numel() + projection.out_channels)) ** 0.5
        nn.init.uniform_(projection.weight, -bound, bound)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    projection.requires_grad_(False)
