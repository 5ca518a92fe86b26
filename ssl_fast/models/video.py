"""Backbones of clips [N, C, T, H, W]: torchvision's 3-D ResNets, and image networks averaged over a clip's frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssl_fast.models.norm import replace_batch_norm

if TYPE_CHECKING:
    from ssl_fast.models.backbone import BackboneConfig

NAMES = ("mc3_18", "r2plus1d_18", "r3d_18")
_OPTIONS = ("cifar_stem", "width", "pretrained", "image_size", "patch_size", "drop_path")  # of images alone


def build_video_network(config: BackboneConfig) -> nn.Module:
    """The 3-D ResNet that `config.name` names, without its classifier: clips [N, C, T, H, W] -> features [N, 512].

    Options: `depth` (blocks per stage), `norm`, `in_channels`; `weights` are loaded by `build_backbone`.

    Raises:
        ValueError: an option that they have not got.
        ImportError: torchvision is not installed.

    Reference: Tran et al. 2018, arXiv:1711.11248 (R3D, MC3 and R(2+1)D of 18 layers).
    """
    for name in _OPTIONS:
        if getattr(config, name):
            hint = "; give a local file with backbone.weights" if name == "pretrained" else ""
            raise ValueError(
                f"backbone.{name} is for timm's image networks, and {config.name} is a video network{hint}"
            )
    try:
        from torchvision.models import video
    except ImportError as error:
        raise ImportError("video backbones need torchvision: pip install ssl_fast[recipes]") from error
    model: Any = getattr(video, config.name)(weights=None)
    model.fc = nn.Identity()
    model.num_features = 512
    if config.depth:
        _shorten(model, config.depth)
    if config.in_channels != 3:
        _set_input(model, config.in_channels)
    if config.norm == "group":
        replace_batch_norm(model)
    network: nn.Module = model
    return network


def _shorten(model: Any, depth: str) -> None:
    """Keeps so many blocks of each stage: the first ones, which change width and stride."""
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    numbers = depth.split(",")
    if len(numbers) != 4 or any(number.strip() not in ("1", "2") for number in numbers):
        raise ValueError(f"backbone.depth: expected four numbers of 1 or 2 for a video network, got {depth!r}")
    for stage, number in zip(stages, numbers, strict=True):
        del stage[int(number) :]


def _set_input(model: Any, channels: int) -> None:
    old = model.stem[0]
    new = nn.Conv3d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")  # as torchvision initialises them
    model.stem[0] = new


def over_frames(
    network: nn.Module,  # [N, C, H, W] -> [N, F]
    clips: Tensor,  # [N, C, T, H, W]
) -> Tensor:  # [N, F]
    """The mean of an image network's features over the frames of each clip."""
    frames = clips.transpose(1, 2).flatten(0, 1)  # [N T, C, H, W], no copy where clips are channels_last_3d
    h: Tensor = network(frames)
    return h.view(len(clips), clips.shape[2], -1).mean(dim=1)


def channels_last(x: Tensor) -> Tensor:
    """The same images [N, C, H, W] or clips [N, C, T, H, W] (or weights of such) with the channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def channels_last_(module: nn.Module) -> None:
    """Puts the channels of all convolution weights last in memory; `Module.to` does it for two dimensions or three."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim in (4, 5):
            tensor.data = channels_last(tensor.data)
