"""CBAM: each residual branch weighs its channels, then its places, before the shortcut is added.

    x <- x * sigmoid(MLP(avgpool x) + MLP(maxpool x)),   x <- x * sigmoid(norm(conv7x7([mean_c x; max_c x])))

The layer is timm's. Its gates start near one half, so published weights need fine-tuning with it.

Reference: Woo et al. 2018, arXiv:1807.06521, Eq. 1-3; section 3 (kernel 7, on the branch); section 4.1
(reduction 16; here to no fewer than 8 units).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from ssl_fast.models.parts.families import require


def add_cbam(model: nn.Module, name: str) -> None:
    """Puts one CBAM into every residual block of a ResNet or ConvNeXt, in place; timm's names stay.

    New names: `layer1.0.se.*` (timm's own place for such a layer), `stages.0.blocks.0.drop_path.attention.*`.

    Raises:
        ValueError: another family, or blocks that weigh their channels already.
    """
    family = require(model, "attention=cbam", ("resnet", "convnext"), name)
    if family == "resnet":
        for block in (block for stage in range(1, 5) for block in model.get_submodule(f"layer{stage}").children()):
            _into_resnet(block, name)
    else:
        for block in (block for stage in model.get_submodule("stages").children() for block in stage.blocks):  # type: ignore[union-attr]
            _into_convnext(block)


def _into_resnet(block: Any, name: str) -> None:
    if getattr(block, "se", "none") is not None:
        raise ValueError(f"backbone.attention=cbam: the blocks of {name} have no free place; take resnet18 or resnet50")
    last = block.conv3 if hasattr(block, "conv3") else block.conv2
    block.se = _cbam(last.out_channels)


def _into_convnext(block: Any) -> None:
    # the last thing that a block does to its branch; drop path itself has no tensors, so no name changes
    parts = OrderedDict(attention=_cbam(block.conv_dw.out_channels), drop_path=block.drop_path)
    block.drop_path = nn.Sequential(parts)


def _cbam(channels: int) -> nn.Module:
    from timm.layers.cbam import CbamModule

    hidden = max(channels // 16, 8)  # a single unit, in narrow networks, may be dead from the start
    module: nn.Module = CbamModule(channels, rd_channels=hidden, spatial_kernel_size=7)
    return module
