"""Width and depth of timm's vision transformers, and the sizes of images that they take."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

VITS = ["vision_transformer", "deit", "eva"]  # files of timm whose constructors take embed_dim, depth and num_heads
HEAD_DIM = 64  # Dosovitskiy et al. 2020, arXiv:2010.11929, table 1: width / heads is 64 or 80


def vit_arguments(width: int, depth: str, heads: int) -> dict[str, Any]:
    """Constructor arguments for a width, a number of blocks and a number of heads; 0 or "" keeps the model's.

    Raises:
        ValueError: a depth that is no positive number, heads without a width, or a width that they do not divide.
    """
    if depth and not (depth.strip().isdigit() and int(depth) > 0):
        raise ValueError(f'backbone.depth of a vision transformer must be a positive number such as "6", got {depth!r}')
    if heads < 0 or (heads and not width):
        raise ValueError(f"backbone.heads must be a positive number beside backbone.width, got {heads} and {width}")
    if width < 0 or width % (heads or HEAD_DIM):
        raise ValueError(
            f"backbone.width must be a multiple of backbone.heads (of {HEAD_DIM} without them), got {width} and {heads}"
        )
    arguments: dict[str, Any] = {"depth": int(depth)} if depth else {}
    return arguments | ({"embed_dim": width, "num_heads": heads or width // HEAD_DIM} if width else {})


def check_sizes(model: nn.Module, sizes: Collection[int]) -> None:
    """Raises ValueError when a timm network cannot take square images of these sizes in pixels, and says what helps.

    Networks without patches take any size.
    """
    embed: Any = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if patch is None:
        return
    built_for = embed.img_size[0] if getattr(embed, "strict_img_size", False) and embed.img_size else None
    unlike = sorted(size for size in sizes if built_for not in (None, size))
    if unlike and len(set(sizes)) > 1:
        raise ValueError(
            f"the views have {_listed(sizes)} px, and the backbone takes {built_for} px alone: set "
            "backbone.dynamic_size=true where it is a vision transformer"
        )
    if unlike:
        raise ValueError(f"backbone.image_size: expected {unlike[0]}, the size of the views in px, got {built_for}")
    if not getattr(embed, "dynamic_img_pad", False) and (odd := sorted(size for size in sizes if size % patch[0])):
        raise ValueError(
            f"views of {_listed(odd)} px cannot be cut into patches of {patch[0]}: choose method.view.size, "
            "method.local_size and eval_size among its multiples"
        )


def _listed(sizes: Collection[int]) -> str:
    return " and ".join(str(size) for size in sorted(set(sizes)))
