"""Weights from a local file into a network, with a report of what fitted."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Wrappers and owners that training codes put before a backbone's own names; tried again until none fits.
PREFIXES = ("module", "_orig_mod", "backbone", "model", "encoder_q", "base_encoder", "encoder", "student", "visual")
CONTAINERS = ("state_dict", "model", "model_state_dict")
REQUIRED = 0.9


@dataclass(frozen=True)
class WeightsReport:
    """Which of the model's tensors a file filled.

    Attributes:
        matched: names filled. missing: names of the model that the file lacks or holds in another shape.
        unexpected: names of the file (prefixes stripped) that the model lacks.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        for title, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            text += f"; {title}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""
        return text


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth or .pt file by name; never unpickles anything but tensors and plain containers.

    Raises:
        ValueError: when the file does not exist, has another suffix, or is not a file of plain tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"backbone.weights: no such file: {path}")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"backbone.weights must end in .safetensors, .pth or .pt, got {path.name!r}")
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"backbone.weights: {path} cannot be read as plain tensors: {reason}") from error
    for name in CONTAINERS:
        content = content[name] if isinstance(content.get(name), Mapping) else content
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _read_torch(path: Path) -> Mapping[str, Any]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise TypeError(f"holds a {type(content).__name__}, not a dictionary")
    return content


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise RuntimeError(str(error)) from error


def strip_prefixes(name: str) -> str:
    """`name` without any of PREFIXES in front, repeatedly."""
    while any(name.startswith(f"{prefix}.") for prefix in PREFIXES):
        name = name.split(".", 1)[1]
    return name


def load_weights(model: nn.Module, path: str | Path) -> WeightsReport:
    """Fill `model` in place from a local file.

    Args:
        model: network with bare names (`conv1.weight`); all prefixes of the file's names are stripped.
        path: .safetensors, .pth or .pt file.

    Returns:
        The report, which is also logged.

    Raises:
        ValueError: when the file cannot be read, or fills less than 90 % of the model's tensors (model unchanged).
    """
    own = model.state_dict()
    found = {strip_prefixes(name): tensor for name, tensor in read_weights(path).items()}
    matched = {name for name, tensor in own.items() if name in found and found[name].shape == tensor.shape}
    report = WeightsReport(
        matched=tuple(name for name in own if name in matched),
        missing=tuple(name for name in own if name not in matched),
        unexpected=tuple(name for name in found if name not in own),
    )
    if len(matched) < REQUIRED * len(own):
        raise ValueError(
            f"backbone.weights: {path} fills {len(matched)} of {len(own)} tensors, at least 90 % needed ({report})"
        )
    model.load_state_dict({name: found[name] for name in report.matched}, strict=False)
    logger.info("weights from %s: %s", path, report)
    return report
