"""A vision transformer's way from images to rows of tokens, open to parts that change how many tokens there are."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ssl_fast.models.parts.families import require


def require_plain_blocks(model: Any, part: str, name: str) -> None:
    """Raises ValueError unless `model` is a ViT or EVA-02 of pre-norm blocks with timm's plain attention."""
    family = require(model, part, ("vit", "eva"), name)
    block, attention = ("Block", "Attention") if family == "vit" else ("EvaBlock", "EvaAttention")
    kinds = {(type(b).__name__, type(getattr(b, "attn", None)).__name__) for b in model.blocks}
    if kinds != {(block, attention)} or getattr(model, "rope_mixed", False):
        raise ValueError(f"backbone.{part}: the blocks of {name} are of another kind; take vit_small_patch16_224")


def embed(
    model: Any,
    x: Tensor,  # [N, C, H, W]
) -> tuple[Tensor, Tensor | None]:
    """Tokens [N, T, F] before the first block, class and register tokens first, and rotations [P, R] of the patches."""
    tokens = model._pos_embed(model.patch_embed(x))
    tokens, rope = tokens if isinstance(tokens, tuple) else (model.patch_drop(tokens), None)
    return model.norm_pre(tokens), rope


def attention_branch(block: Any, attended: Tensor) -> Tensor:
    """What a block adds to its tokens after attention: layer scale, drop path."""
    return block.drop_path1(_scaled(block, 1, attended))  # type: ignore[no-any-return]


def mlp_branch(
    block: Any,
    x: Tensor,  # [N, T, F]
) -> Tensor:  # [N, T, F]
    """What a block adds to its tokens after the attention."""
    return block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x))))  # type: ignore[no-any-return]


def _scaled(block: Any, branch: int, x: Tensor) -> Tensor:
    """LayerScale: a module in timm's ViT, a parameter or None in its EVA."""
    scale = getattr(block, f"ls{branch}", None)
    if isinstance(scale, nn.Module):
        return scale(x)  # type: ignore[no-any-return]
    gamma = getattr(block, f"gamma_{branch}")
    return x if gamma is None else gamma * x
