"""Normalisation layers that do not mix samples, or mix all ranks' samples."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

CHANNELS_PER_GROUP = 16  # Wu & He 2018, Table 3: 16 channels a group is as good as 32 groups, and fits narrow networks


def group_norm(
    num_channels: int,
    affine: bool = True,
) -> nn.GroupNorm:
    """GroupNorm with 16 channels in a group, or the largest common divisor with 16 where that does not divide.

    Reference: Wu and He 2018, arXiv:1803.08494.
    """
    return nn.GroupNorm(num_channels // math.gcd(num_channels, CHANNELS_PER_GROUP), num_channels, affine=affine)


def _as_group_norm(norm: nn.BatchNorm2d | nn.BatchNorm3d) -> nn.Module:
    new: nn.Module = group_norm(norm.num_features)
    if norm.affine:  # keeps a zero-initialised last norm of a residual block at zero
        new.load_state_dict({"weight": norm.weight.data, "bias": norm.bias.data})
    # timm's fused BatchNormAct2d also holds dropout and the activation
    fused = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(new, *fused) if fused else new


def replace_batch_norm(module: nn.Module) -> int:
    """Replace, in place, every BatchNorm2d and BatchNorm3d inside `module` by GroupNorm with the same weight and bias.

    Returns:
        The number of layers replaced.
    """
    count = 0
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            setattr(module, name, _as_group_norm(child))
            count += 1
        else:
            count += replace_batch_norm(child)
    return count


def synchronize_batch_norm(module: M) -> M:
    """`module` with its batch normalisation over all ranks; torch's own conversion drops timm's fused activations."""
    from timm.layers.norm_act import convert_sync_batchnorm

    converted: M = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    return converted
