"""Width, depth and stem of timm's ResNets, for small images and small machines."""

from __future__ import annotations

from typing import Any

from torch import nn


def resnet_arguments(width: int, depth: str) -> dict[str, Any]:
    """Constructor arguments of `timm.models.resnet.ResNet` for a base width and a list of blocks per stage.

    timm's plain stem always has 64 channels; its deep stem has 2 x `stem_width`. So a narrower (or wider) network is
    built with the deep stem and `set_stem` then puts a single convolution in its place.

    Raises:
        ValueError: on an odd or negative width, or a depth that is not four positive numbers.
    """
    arguments: dict[str, Any] = {}
    if depth:
        blocks = tuple(int(part) if part.strip().isdigit() else 0 for part in depth.split(","))
        if len(blocks) != 4 or min(blocks) < 1:
            raise ValueError(f'backbone.depth must be four positive block counts such as "1,1,1,1", got {depth!r}')
        arguments["layers"] = blocks
    if width:
        if width < 2 or width % 2:
            raise ValueError(f"backbone.width must be an even positive number of channels, got {width}")
        arguments |= {"channels": tuple(width << stage for stage in range(4))}
        arguments |= {"stem_type": "deep", "stem_width": width // 2}
    return arguments


def set_stem(
    model: nn.Module,
    *,
    in_channels: int,
    width: int,
    cifar: bool,
) -> None:
    """Put one convolution in the stem, in place: 7x7 stride 2 before the max pool, or 3x3 stride 1 and no pool.

    Reference: He et al. 2016, arXiv:1512.03385, Section 4.2; Chen et al. 2020, arXiv:2002.05709, Appendix B.9.
    """
    size, stride = (3, 1) if cifar else (7, 2)
    conv = nn.Conv2d(in_channels, width or 64, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = conv
    if cifar:
        model.maxpool = nn.Identity()
