"""Checkpoints to test with: states, whether one loads, and manifests made to fit."""

import json
import os
from pathlib import Path

import torch

from ssl_fast.train import checkpoint
from ssl_fast.train.checkpoint import Checkpoints


def make_state(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {"step": step, "model": {"weight": torch.randn(64, 48, generator=generator)}, "betas": (0.9, 0.999)}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def load_step(checkpoints: Checkpoints) -> int | None:
    """The step that loads, with its content compared; None when nothing loads."""
    found = checkpoints.load()
    if found is None:
        return None
    state, path = found
    assert same(state, make_state(state["step"])) and path == checkpoints.path(state["step"])
    return state["step"]


def hidden(checkpoints: Checkpoints) -> list[str]:
    return [name for name in os.listdir(checkpoints.folder) if name.startswith(".step")]


def seal(folder: Path, **changes: object) -> None:
    """Rewrite a manifest so that it fits the files, as an attacker or a later version would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / "state.pt").read_bytes()
    manifest["files"]["state.pt"] = {"size": len(data), "sha256": checkpoint.hashlib.sha256(data).hexdigest()}
    manifest.update(changes)
    manifest["sha256"] = checkpoint._manifest_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
