"""MAE: see a quarter of an image's patches, predict the pixels of the others.

    h = encoder(visible patches),  x' = decoder(h, mask tokens),  loss = mean over the hidden patches of |x' - x|^2 / P
with x the P pixels of a patch, less their mean and over their standard deviation.

Reference: He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377 (section 3; appendix
A.1 and table 8 for the settings).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssl_fast.data.view_presets import mae
from ssl_fast.data.views import Batch, View
from ssl_fast.distributed import global_mean
from ssl_fast.methods.base import Method
from ssl_fast.methods.masks import random_order
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.mae_decoder import MAEDecoder, normalized_pixels, patchify, sincos_positions
from ssl_fast.models.tokens import Tokens, check_transformer, gather_rows, patch_grid, tokens
from ssl_fast.optim.config import OptimizerConfig


@dataclass
class MAEConfig:
    """Defaults: ImageNet, 800 epochs, batch 4,096 (table 8); the decoder of section 4.1."""

    name: str = "mae"
    mask_ratio: float = 0.75
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    normalize_pixels: bool = True  # each patch's target by its own mean and deviation (table 1d)
    sincos_positions: bool = True  # the encoder's are fixed too (appendix A.1); false keeps the backbone's learnt ones
    view: View = field(default_factory=lambda: mae()[0])
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            name="adamw", lr=1.5e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=40
        )
    )


class MAE(Method):
    """MAE with any vision transformer of timm, built for the view's size (`backbone.image_size`).

    The encoder runs on the visible patches alone. What is evaluated is the backbone's own pooled feature: the class
    token, or the mean of the patches for models that pool so.
    """

    Config = MAEConfig
    config: MAEConfig
    may_collapse = False  # what is watched are pixels
    find_unused_parameters = True  # layers that pool, in some models

    def __init__(self, config: MAEConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.tokens: Callable[..., Tokens] = tokens
        check_transformer(backbone, "mae")
        self.grid: tuple[int, int] = tuple(self.vit.patch_embed.grid_size)
        num_patches = self.grid[0] * self.grid[1]
        self.num_visible = int(num_patches * (1 - config.mask_ratio))
        if not 0 < self.num_visible < num_patches:
            raise ValueError(f"mask_ratio: expected to hide some of {num_patches} patches, got {config.mask_ratio}")
        if config.sincos_positions:
            self._fix_positions()
        self.decoder = MAEDecoder(
            self.vit.embed_dim,
            self.grid,
            backbone.config.in_channels * self.vit.patch_embed.patch_size[0] * self.vit.patch_embed.patch_size[1],
            dim=config.decoder_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
        )

    @property
    def vit(self) -> Any:
        """The transformer."""
        return self.backbone.model

    def compile_networks(self) -> None:
        self.tokens = torch.compile(tokens)

    @staticmethod
    def views(config: MAEConfig) -> tuple[View, ...]:
        return (config.view,)

    def extras(self, batch: Batch, key: int) -> dict[str, Tensor]:
        grid = patch_grid(self.vit, *batch.views[0].shape[-2:])
        if grid != self.grid:
            raise ValueError(f"view.size: expected {self.grid} patches as backbone.image_size makes, got {grid}")
        return {"order": random_order(batch.index, key, grid[0] * grid[1])}  # [N, P], the visible ones first

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        order = batch.extras["order"]
        found = self.tokens(self.vit, batch.views[0], keep=order[:, : self.num_visible])
        prefix = found.registers
        if found.class_token is not None:
            prefix = torch.cat((found.class_token[:, None], prefix), dim=1)
        return {"pixels": self.decoder(prefix, found.patches, order)}  # [N, hidden patches, pixels]

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        patches = patchify(batch.views[0], self.vit.patch_embed.patch_size)
        hidden = gather_rows(patches, batch.extras["order"][:, self.num_visible :])
        return {"target": normalized_pixels(hidden) if self.config.normalize_pixels else hidden}

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        error = embeddings["pixels"].to(embeddings["target"].dtype) - embeddings["target"]
        return {"loss": global_mean(error.square().mean((1, 2)), group=self.group)}

    @torch.no_grad()
    def _fix_positions(self) -> None:
        positions, config = self.vit.pos_embed, self.backbone.config
        if positions is None or config.pretrained or config.weights:
            why = "has none" if positions is None else "brings its own with its weights"
            raise ValueError(f"sincos_positions: expected a backbone whose positions may be set; {config.name} {why}")
        fixed = sincos_positions(self.grid, positions.shape[2])
        positions[0] = 0
        positions[0, -len(fixed) :] = fixed.to(positions.dtype)
        positions.requires_grad_(False)
