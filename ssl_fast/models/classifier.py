"""A linear head on a backbone: images to class logits, and the files that hold the head."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from ssl_fast.models.weights import read_weights

WEIGHTS, CLASSES = "head.safetensors", "classes.json"


class Classifier(nn.Module):
    """logits = head(backbone(x)).

    Args:
        backbone: images [N, C, H, W] -> features [N, F].
        head: features [N, F] -> logits [N, K], K classes.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
    ) -> Tensor:  # [N, K]
        """Logits of normalised images."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def save_head(folder: str | Path, head: nn.Linear, classes: Sequence[str]) -> list[str]:
    """Writes `head.safetensors` (weight [K, F], bias [K]) and `classes.json` (K names), each replaced atomically.

    Returns:
        The names of the files.

    Raises:
        ValueError: not one name for each output.
    """
    from safetensors.torch import save

    if len(classes) != head.out_features:
        raise ValueError(f"classes: expected {head.out_features} names, one for each output, got {len(classes)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    (folder / f"{WEIGHTS}.partial").write_bytes(save(tensors))
    (folder / f"{CLASSES}.partial").write_text(json.dumps(list(classes), ensure_ascii=False) + "\n", encoding="utf-8")
    for name in (WEIGHTS, CLASSES):
        os.replace(folder / f"{name}.partial", folder / name)
    return [WEIGHTS, CLASSES]


def load_head(folder: str | Path) -> tuple[nn.Linear, list[str]]:
    """The head of `save_head` and the names of its classes.

    Raises:
        ValueError: a file is missing or damaged, or the two do not fit each other.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CLASSES):
        if not (folder / name).is_file():
            raise ValueError(f"no {name} in {folder}: expected the folder of a finished probe or finetune stage")
    try:
        classes = [str(name) for name in json.loads((folder / CLASSES).read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CLASSES} is not a list of names: {error}") from error
    tensors = read_weights(folder / WEIGHTS)
    weight = tensors.get("weight")
    if weight is None or weight.ndim != 2 or len(weight) != len(classes) or set(tensors) - {"weight", "bias"}:
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise ValueError(f"{folder / WEIGHTS}: expected weight [{len(classes)}, F] and bias, got {found}")
    head = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in tensors, dtype=weight.dtype)
    head.load_state_dict(tensors)
    return head, classes
