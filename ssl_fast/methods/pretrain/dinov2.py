"""DINOv2: take over a teacher's assignments to prototypes, of the image (DINO) and of hidden patches (iBOT).

    loss = DINO(class tokens of all crops) + iBOT(hidden patches of the global crops) + w KoLeo(class tokens of those)
The teacher sees the whole global crops; the student sees them with blocks of patches hidden, and the local crops.

Reference: Oquab et al. 2023, arXiv:2304.07193 (section 4); Caron et al. 2021, "DINO", arXiv:2104.14294; Zhou et al.
2021, "iBOT", arXiv:2111.07832. Numbers without a source are of the authors' default configuration (ViT-L/16, ImageNet).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssl_fast.data.view_presets import dinov2
from ssl_fast.data.views import Batch, View
from ssl_fast.methods.asymmetric_views import MultiCrop
from ssl_fast.methods.base import Method
from ssl_fast.methods.masks import block_masks
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import DINOHead
from ssl_fast.models.teacher import Teacher
from ssl_fast.models.tokens import Tokens, check_transformer, patch_grid, tokens
from ssl_fast.ops.dino import DINOCenter, dino_loss
from ssl_fast.ops.ibot import ibot_loss
from ssl_fast.ops.koleo import koleo
from ssl_fast.optim.config import OptimizerConfig
from ssl_fast.optim.schedule import cosine_momentum

HEADS = ("dino_head", "ibot_head")


@dataclass
class DINOv2Config(MultiCrop):
    """Defaults: the authors' short ImageNet run of 100 epochs; heads and assignments of their large runs."""

    name: str = "dinov2"
    num_prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    norm: str = "none"  # of the heads
    learn_gain: bool = True  # of the prototypes
    separate_heads: bool = True  # the large runs' (section 4: untying pays at scale)
    centering: str = "sinkhorn"  # the large runs'; or mean
    center_momentum: float = 0.9  # of centering=mean
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    first_teacher_temperature: float = 0.04
    temperature_warmup: float = 0.3  # share of the run: 30 of 100 epochs
    freeze_last_layer: float = 0.01  # share of the run in which the prototypes stay: 1 of 100 epochs
    momentum: float = 0.992  # rises to 1 along a cosine
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1  # of the sum over both global crops
    mask_probability: float = 0.5  # of a global crop
    mask_ratio: tuple[float, float] = (0.1, 0.5)  # of its patches
    layer_decay: float = 0.9  # of the learning rate, from each block to the one before
    patch_embed_lr: float = 0.2
    view: View = field(default_factory=lambda: dinov2()[0])
    local_scale: tuple[float, float] = field(default_factory=lambda: dinov2()[2].crop_scale)
    optimizer: OptimizerConfig = field(  # lr: 0.004 at batch 1,024, by the square root; final_weight_decay: large runs'
        default_factory=lambda: OptimizerConfig(
            name="adamw", lr=0.002, lr_scaling="sqrt", weight_decay=0.04, final_weight_decay=0.2, warmup_epochs=10
        )
    )

    def __post_init__(self) -> None:
        if self.centering not in ("mean", "sinkhorn"):
            raise ValueError(f"method.centering: expected mean or sinkhorn, got {self.centering!r}")
        low, high = self.mask_ratio
        if not 0 < low <= high <= 1:
            raise ValueError(f"method.mask_ratio: expected low, high with 0 < low <= high <= 1, got {low}, {high}")


class DINOv2(Method):
    """DINOv2 with any vision transformer of timm that has a class token.

    Crops of several sizes need `backbone.dynamic_size=true`. Drop path is the student's alone. Unlike in the authors'
    code the nearest neighbours of KoLeo are sought over all ranks, drop path rises over the blocks, gradients are
    clipped by one norm (theirs: by one of the backbone and one of each head), and while the prototypes are frozen their
    moments rest too.
    """

    Config = DINOv2Config
    config: DINOv2Config
    find_unused_parameters = True  # prototypes while they are frozen
    collapse_cause = "lower the learning rate, warm it up for longer, or check the masks and temperatures"

    def __init__(self, config: DINOv2Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.tokens: Callable[..., Tokens] = tokens
        check_transformer(backbone, "dinov2", class_token=True)
        vit: Any = backbone.model
        self.depth = len(vit.blocks)
        self.mask_token = nn.Parameter(torch.zeros(vit.embed_dim))
        self.dino_head = self._make_head()
        self.ibot_head = self._make_head() if config.separate_heads else self.dino_head
        self.teacher = Teacher(self._student())
        centers = HEADS if config.centering == "mean" else ()
        self.centers = nn.ModuleDict({n: DINOCenter(config.num_prototypes, config.center_momentum) for n in centers})
        self._teacher_rows: dict[str, Tensor] = {}

    def _make_head(self) -> DINOHead:
        config = self.config
        return DINOHead(
            self.backbone.model.embed_dim,  # type: ignore[arg-type]
            config.hidden_dim,
            config.bottleneck_dim,
            config.num_prototypes,
            norm=config.norm,
            learn_gain=config.learn_gain,
        )

    def _student(self) -> nn.ModuleDict:
        return nn.ModuleDict({"backbone": self.backbone, "dino_head": self.dino_head, "ibot_head": self.ibot_head})

    def compile_networks(self) -> None:
        self.tokens = torch.compile(tokens)

    @staticmethod
    def views(config: DINOv2Config) -> tuple[View, ...]:
        return config.crops()

    def group_options(self, name: str, parameter: nn.Parameter) -> dict[str, Any]:
        scale = self.config.layer_decay ** layers_above(name, self.depth)
        scale *= self.config.patch_embed_lr if ".patch_embed." in name else 1.0
        return {} if scale == 1.0 else {"lr_scale": scale}

    def extras(self, batch: Batch, key: int) -> dict[str, Tensor]:
        grid = patch_grid(self.backbone.model, *batch.views[0].shape[-2:])
        masks = block_masks(
            batch.index, key, grid, probability=self.config.mask_probability, ratio=self.config.mask_ratio
        )
        return {"masks": masks}  # [N, 2, P]

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        masks = batch.extras["masks"].transpose(0, 1).flatten(0, 1)  # [2N, P], view by view
        crops = self._tokens(self.backbone, batch.views[:2], mask=masks, mask_token=self.mask_token)
        h = crops.class_token
        assert h is not None
        if len(batch.views) > 2:
            local = self._tokens(self.backbone, batch.views[2:]).class_token
            assert local is not None
            h = torch.cat((h, local))
        z = _by_sample(self.dino_head(h), len(batch))
        h, patches = _by_sample(h, len(batch)), _by_sample(crops.patches, len(batch))
        return {"h": h[:, :2], "z": z, "patches": patches}  # [N, 2, F], [N, V, D], [N, 2, P, F]

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        teacher: Any = self.teacher.module
        with torch.no_grad():
            crops = self._tokens(teacher["backbone"], batch.views[:2])
            z = teacher["dino_head"](crops.class_token)
        return {"teacher_z": _by_sample(z, len(batch)), "teacher_patches": _by_sample(crops.patches, len(batch))}

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        config, teacher = self.config, cast(Any, self.teacher.module)
        masks = batch.extras["masks"].flatten(0, 1)  # [2N, P]
        z, teacher_z = (embeddings[name].transpose(0, 1) for name in ("z", "teacher_z"))  # [V, N, D], [2, N, D]
        places = masks.flatten().nonzero().squeeze(1)  # [M]; the one wait for the device: how many there are
        hidden = self.ibot_head(embeddings["patches"].flatten(0, 2).index_select(0, places))  # [M, D]
        with torch.no_grad():
            teacher_hidden = teacher["ibot_head"](embeddings["teacher_patches"].flatten(0, 2).index_select(0, places))
        self._teacher_rows = {"dino_head": teacher_z.detach(), "ibot_head": teacher_hidden}

        dino = dino_loss(z, teacher_z, **self._last_layer("dino_head", progress))
        ibot = ibot_loss(hidden, teacher_hidden, masks, **self._last_layer("ibot_head", progress))
        spread = torch.stack([koleo(h, group=self.group) for h in embeddings["h"].unbind(1)]).sum()
        total = config.dino_weight * dino + config.ibot_weight * ibot + config.koleo_weight * spread
        return {"loss": total, "dino": dino, "ibot": ibot, "koleo": spread}

    def after_step(self, progress: float) -> None:
        teacher: Any = self.teacher.module
        for name, center in self.centers.items():
            cast(DINOCenter, center).update_(self._teacher_rows[name], teacher[name].prototypes(), group=self.group)
        self._teacher_rows = {}
        self.teacher.update_(self._student(), cosine_momentum(progress, self.config.momentum))

    def _last_layer(self, name: str, progress: float) -> dict[str, Any]:
        """What both losses are told of a head's prototypes and temperatures."""
        prototypes, teacher = getattr(self, name).prototypes(), cast(Any, self.teacher.module)
        with torch.no_grad():
            teacher_prototypes = teacher[name].prototypes()
        return {
            "weight_student": prototypes.detach() if progress < self.config.freeze_last_layer else prototypes,
            "weight_teacher": teacher_prototypes,
            "student_temperature": self.config.student_temperature,
            "teacher_temperature": self._teacher_temperature(progress),
            "center": self.centers[name].value if name in self.centers else "sinkhorn",
            "group": self.group,
        }

    def _tokens(self, backbone: Backbone, views: tuple[Tensor, ...], **options: Any) -> Tokens:
        """Tokens of views of one size, as one batch, view by view."""
        return self.tokens(backbone.model, torch.cat(views), **options)

    def _teacher_temperature(self, progress: float) -> float:
        first, last, warmup = (
            self.config.first_teacher_temperature, self.config.teacher_temperature, self.config.temperature_warmup,
        )  # fmt: skip
        return first + (last - first) * (min(progress / warmup, 1.0) if warmup > 0 else 1.0)


def layers_above(name: str, depth: int) -> int:
    """How many steps of layer decay a parameter lies below the heads: 1 for the last block, depth + 1 for embeddings.

    Reference: Bao et al. 2021, arXiv:2106.08254, section 3.1 (layer decay), counted as in DINOv2's code.
    """
    inside = name.removeprefix("backbone.model.")
    if block := re.match(r"blocks\.(\d+)\.", inside):
        return depth - int(block[1])
    embeddings = ("patch_embed.", "pos_embed", "cls_token", "reg_token", "mask_token", "norm_pre.")
    return depth + 1 if inside.startswith(embeddings) else 0


def _by_sample(
    rows: Tensor,  # [VN, ...], view by view
    num_samples: int,
) -> Tensor:  # [N, V, ...]
    return rows.view(-1, num_samples, *rows.shape[1:]).transpose(0, 1)
