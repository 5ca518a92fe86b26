"""Weights from a file into a network, with a report of what fitted."""

from __future__ import annotations

import argparse
import logging
import pickle
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_fast.models.layouts import candidates, preference

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin")
IN_FOLDERS = ("backbone.safetensors", "state.pt")  # a stage of a run, a checkpoint of a run
TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class WeightsReport:
    """Which of the model's tensors a file filled.

    Attributes:
        matched: names filled. missing: names of the model that the file lacks or holds in another shape.
        unexpected: names of the file's network (without its prefix) that the model lacks.
        source: which part of the file was taken, in which layout.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    source: str = ""

    def __str__(self) -> str:
        text = f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        for title, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            text += f"; {title}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""
        return f"{text} (from {self.source})" if self.source else text


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a file by dotted name; never unpickles anything but tensors and plain containers.

    Args:
        path: .safetensors, or what torch.save wrote (.pth, .pt, .ckpt, .tar, .bin), or a folder of a run's stage or
            checkpoint. `argparse.Namespace`, in which many training codes keep their arguments, is let through and
            dropped; a file of other objects is refused.

    Raises:
        ValueError: when the file does not exist, has another suffix, or is not a file of plain tensors.
    """
    path = Path(path)
    path = next((path / name for name in IN_FOLDERS if (path / name).is_file()), path)
    if not path.is_file():
        raise ValueError(f"backbone.weights: no such file: {path}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"backbone.weights must end in {', '.join(SUFFIXES)}, got {path.name!r}")
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"backbone.weights: {path} cannot be read as plain tensors: {reason}") from error
    return dict(_tensors(content))


def _tensors(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")


def _read_torch(path: Path) -> Mapping[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
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


def _published(name: str) -> Mapping[str, Tensor]:
    """torchvision's weights by their name there, from its cache or downloaded."""
    import torchvision

    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"backbone.weights: torchvision has no weights {name!r}; expected such as ResNet50_Weights.IMAGENET1K_V2"
        ) from error
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise FileNotFoundError(
            f"backbone.weights: {name} of torchvision is neither in the cache nor within reach ({error}); give a file"
        ) from error
    return state


def fill(module: nn.Module, found: Mapping[str, Tensor]) -> WeightsReport:
    """What `found` has for `module`, by name and shape; nothing is loaded."""
    own = module.state_dict()
    matched = tuple(name for name, tensor in own.items() if name in found and found[name].shape == tensor.shape)
    missing = tuple(name for name in own if name not in set(matched))
    return WeightsReport(matched, missing, tuple(name for name in found if name not in own))


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    required: Collection[str] | None = None,
    minimum: float = 0.9,
    owner: str = "",
) -> WeightsReport:
    """Fill `model` in place from a file in any of the layouts of `ssl_fast.models.layouts`.

    Args:
        model: network with timm's bare names (`conv1.weight`).
        path: as in `read_weights`, or "torchvision:<name of its weights>".
        required: names that count; None for all of the model's. Counters of batches never do: old files lack them.
        minimum: share of them that the file must fill.
        owner: part of the file's names under which the network lies, where several do.

    Returns:
        The report, which is also logged.

    Raises:
        ValueError: when the file cannot be read, or fills too little (model unchanged).
        FileNotFoundError: when published weights cannot be had.
    """
    name = str(path)
    tensors = _published(name.removeprefix(TORCHVISION)) if name.startswith(TORCHVISION) else read_weights(path)
    possible = candidates(model, tensors, owner)
    if not possible:
        heads = ", ".join(sorted({key.split(".")[0] for key in tensors})[:8])
        raise ValueError(f"backbone.weights_from: no network of this kind under {owner!r} in {path} (it has {heads})")
    reports = {source: fill(model, found) for source, found in possible.items()}
    layout, prefix = min(reports, key=lambda source: (-len(reports[source].matched), preference(source[1])))
    best, found = reports[layout, prefix], possible[layout, prefix]
    where = f"{prefix.removesuffix('.')!r}, names of {layout}" if prefix or layout != "timm" else ""
    report = WeightsReport(best.matched, best.missing, best.unexpected, where)
    needed = {n for n in required or model.state_dict() if not n.endswith("num_batches_tracked")}
    filled = len(needed.intersection(report.matched))
    if filled < minimum * len(needed):
        raise ValueError(
            f"backbone.weights: {path} fills {filled} of {len(needed)} tensors, at least {minimum:.0%} needed "
            f"(backbone.min_matched; {report})"
        )
    model.load_state_dict({name: found[name] for name in report.matched}, strict=False)
    logger.info("weights from %s: %s", path, report)
    return report
