"""Image and text in one space: the files that hold, beside a backbone, what compares its features with texts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path

from torch import nn

from ssl_fast.models.text import TextConfig, TextTower
from ssl_fast.models.weights import read_weights

WEIGHTS, DESCRIPTION = "towers.safetensors", "towers.json"
FORMAT = 1
_PROJECTION = "image_projection.weight"


def save_towers(folder: str | Path, image_projection: nn.Linear, text_tower: TextTower) -> list[str]:
    """Writes `towers.safetensors` (image projection [D, F], text tower) and `towers.json` (sizes), each atomically.

    Returns:
        The names of the files.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {_PROJECTION: image_projection.weight} | {f"text.{k}": v for k, v in text_tower.model.state_dict().items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = {
        "format": FORMAT,
        "num_features": image_projection.in_features,
        "dim": image_projection.out_features,
        "text": asdict(text_tower.config),
    }
    (folder / f"{WEIGHTS}.partial").write_bytes(save(tensors))
    (folder / f"{DESCRIPTION}.partial").write_text(json.dumps(content, indent=2) + "\n")
    for name in (WEIGHTS, DESCRIPTION):
        os.replace(folder / f"{name}.partial", folder / name)
    return [WEIGHTS, DESCRIPTION]


def load_towers(folder: str | Path) -> tuple[nn.Linear, TextTower]:
    """The image projection (features [N, F] -> [N, D]) and the text tower of `save_towers`, in eval mode on the CPU.

    Raises:
        ValueError: a file is missing or damaged, or the two do not fit each other.
    """
    folder = Path(folder)
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise ValueError(f"no {name} in {folder}: expected a finished pretrain stage of method=clip or siglip")
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        known = {field.name for field in fields(TextConfig)}
        config = TextConfig(**{name: value for name, value in content["text"].items() if name in known})
        projection = nn.Linear(content["num_features"], content["dim"], bias=False)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / DESCRIPTION} is no description of two towers: {error}") from error
    tower = TextTower(config, content["dim"])
    tensors = read_weights(folder / WEIGHTS)
    try:
        projection.load_state_dict({"weight": tensors.pop(_PROJECTION)})
        tower.model.load_state_dict({name.removeprefix("text."): tensor for name, tensor in tensors.items()})
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {str(error).splitlines()[0]}") from error
    return projection.eval(), tower.eval()
