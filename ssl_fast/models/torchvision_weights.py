"""A ResNet's weights for torchvision, whose names are timm's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_fast.models.backbone import Backbone, plain_state

FILE = "torchvision.pth"


def to_torchvision(backbone: Backbone, head: nn.Linear | None = None) -> dict[str, Tensor]:
    """A state dict that `torchvision.models.<name>` loads: all of it with a head, with `strict=False` without.

    Args:
        backbone: a ResNet that torchvision has under the same name, without other stem, width, depth or parts.
        head: a linear classifier, which becomes `fc`.

    Raises:
        ValueError: torchvision has no network of this name and these shapes.
        ImportError: without torchvision.
    """
    try:
        from torchvision.models import get_model, list_models
    except ImportError as error:
        raise ImportError("weights for torchvision need torchvision: pip install ssl_fast[recipes]") from error
    name, state = backbone.config.name.split(".")[0], plain_state(backbone)
    known = [model for model in list_models() if "resne" in model]
    if name not in known:
        raise ValueError(f"torchvision: it has no ResNet {name!r} (it has {', '.join(known)})")
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in get_model(name).state_dict().items()}
    odd = sorted(
        key
        for key in wanted.keys() | state.keys()
        if not key.startswith("fc.") and (key not in state or wanted.get(key) != state[key].shape)
    )
    if odd:
        raise ValueError(f"torchvision: its {name} differs in {len(odd)} tensors, first {odd[0]!r}; it fits plain ones")
    classifier = {} if head is None else {f"fc.{key}": value for key, value in head.state_dict().items()}
    return {key: value.detach().cpu() for key, value in (state | classifier).items()}


def save_torchvision(folder: Path, backbone: Backbone, head: nn.Linear | None = None) -> str:
    """Writes `to_torchvision` as `torchvision.pth` (for `torch.load(..., weights_only=True)`); returns its name."""
    torch.save(to_torchvision(backbone, head), folder / FILE)
    return FILE
