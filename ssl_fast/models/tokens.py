"""All tokens of a timm vision transformer, with some of its patches hidden (iBOT, DINOv2) or left out (MAE)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_fast.models.backbone import Backbone


class Tokens(NamedTuple):
    """What a transformer makes of images, after its final norm.

    Attributes:
        class_token: [N, F], or None where the model has none.
        registers: [N, R, F]; R = 0 where the model has none.
        patches: [N, P, F], row by row, or [N, K, F] in the order of `keep`.
    """

    class_token: Tensor | None  # [N, F]
    registers: Tensor  # [N, R, F]
    patches: Tensor  # [N, P, F]


def check_transformer(backbone: Backbone, method: str, class_token: bool = False) -> None:
    """Raises ValueError unless `tokens` can be had of the backbone (with a class token, if `class_token`)."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    name = backbone.config.name
    if not isinstance(backbone.model, VisionTransformer | Eva):
        raise ValueError(
            f"backbone.name: {method} needs a vision transformer of timm (vit_*, deit_*, eva02_*, ...), got {name}"
        )
    if class_token and backbone.model.cls_token is None:
        raise ValueError(f"backbone.name: {method} needs a class token, and {name} has none")


def patch_grid(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches of an image of that many pixels.

    Raises:
        ValueError: a side is no multiple of the patch's, or another than the one that the model is built for.
    """
    vit: Any = model
    rows, columns = vit.patch_embed.patch_size
    if height % rows or width % columns:
        raise ValueError(f"view.size: expected a multiple of the patch's side {rows} x {columns}, got {height}x{width}")
    if not vit.dynamic_img_size and (height, width) != tuple(vit.patch_embed.img_size):
        built = "x".join(map(str, vit.patch_embed.img_size))
        raise ValueError(
            f"view.size: this transformer takes {built} pixels, got {height}x{width}; set backbone.image_size, or "
            "backbone.dynamic_size=true for views of several sizes"
        )
    return height // rows, width // columns


def tokens(
    model: nn.Module,
    images: Tensor,  # [N, C, H, W]
    *,
    mask: Tensor | None = None,  # [N, P] bool
    mask_token: Tensor | None = None,  # [F]
    keep: Tensor | None = None,  # [N, K] int64
) -> Tokens:
    """The forward pass of a timm `VisionTransformer` or `Eva` (DINOv2, DINOv3, EVA-02; registers, rotary positions).

    Args:
        model: the timm module; `check_transformer` says whether it is one of these.
        images: of any size that `patch_grid` allows; positions are then interpolated, as timm does.
        mask: patches whose embedding `mask_token` replaces, before positions are added.
        mask_token: given with `mask`.
        keep: patches to run, each with its own position; the others are left out.

    Raises:
        ValueError: a wrong size of image, or `mask` without `mask_token`.

    Reference: Zhou et al. 2021, arXiv:2111.07832, section 3 (mask); He et al. 2021, arXiv:2111.06377, section 3 (keep).
    """
    if (mask is None) != (mask_token is None):
        raise ValueError("mask and mask_token must both be given, or neither")
    patch_grid(model, *images.shape[-2:])
    vit: Any = model
    x = vit.patch_embed(images)  # [N, P, F], or [N, H, W, F] of a model for several sizes
    if mask is not None and mask_token is not None:
        x = torch.where(mask.reshape(*x.shape[:-1], 1), mask_token.to(x.dtype), x)
    embedded = vit._pos_embed(x)
    x, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
    prefix = vit.num_prefix_tokens
    if keep is not None:
        x = torch.cat((x[:, :prefix], gather_rows(x[:, prefix:], keep)), dim=1)
        rope = None if rope is None else _kept_rope(rope, keep, vit.rope_mixed)
    x = _final_norm(vit)(_blocks(vit, vit.norm_pre(x), rope))
    first = 0 if vit.cls_token is None else 1
    return Tokens(x[:, 0] if first else None, x[:, first:prefix], x[:, prefix:])


def gather_rows(
    rows: Tensor,  # [N, P, F]
    index: Tensor,  # [N, K] int64
) -> Tensor:  # [N, K, F]
    """Rows of each sample by number."""
    return rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))


def _blocks(vit: Any, x: Tensor, rope: Tensor | None) -> Tensor:
    for number, block in enumerate(vit.blocks):
        x = block(x) if rope is None else block(x, rope=rope[number] if vit.rope_mixed else rope)
    return x


def _kept_rope(
    rope: Tensor,  # [P, d], or [depth, heads, P, d] where every block has its own
    keep: Tensor,  # [N, K]
    mixed: bool,
) -> Tensor:  # [N, 1, K, d], or [depth, N, heads, K, d]
    return rope[:, :, keep].transpose(1, 2) if mixed else rope[keep][:, None]


def _final_norm(vit: Any) -> nn.Module:
    """The model's own; where it only has one for pooled features, that one."""
    norm: nn.Module = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
    return norm
