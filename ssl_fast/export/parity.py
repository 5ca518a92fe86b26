"""How far an exported model is from PyTorch: the same images through both, row by row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BATCHES = (1, 3, 8)
Runner = Callable[[Tensor], Tensor]  # [N, C, H, W] -> [N, F]


def random_images(shape: tuple[int, int, int], count: int, seed: int) -> Tensor:
    """Normal noise [count, C, H, W]: the mean and deviation of normalised pixels, the same for the same seed."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def torch_runner(model: nn.Module) -> Runner:
    """fp32 PyTorch on the CPU in eval mode: the reference. The model is put in eval mode and moved there."""
    model = model.cpu().float().eval()

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = model(x)
        return out

    return run


def onnx_runner(path: str | Path) -> Runner:
    """onnxruntime on the CPU.

    Raises:
        ImportError: when onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("parity needs onnxruntime: pip install ssl_fast[recipes]") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def compare(
    reference: Tensor,  # [N, F]
    output: Tensor,  # [N, F]
) -> dict[str, float | None]:
    """Largest absolute error, largest reference value, lowest and mean cosine of the rows; None where not finite.

    Raises:
        ValueError: when the shapes differ.
    """
    if reference.shape != output.shape:
        raise ValueError(f"output must have the reference's shape {tuple(reference.shape)}, got {tuple(output.shape)}")
    a, b = reference.double(), output.double()
    cosine = torch.cosine_similarity(a, b, dim=1, eps=1e-30)
    return {
        "max_error": _finite((a - b).abs().max()),
        "max_reference": _finite(a.abs().max()),
        "cosine_min": _finite(cosine.min()),
        "cosine_mean": _finite(cosine.mean()),
    }


def measure(
    run: Runner,
    images: Tensor,  # [M, C, H, W]
    reference: Tensor,  # [M, F] of the same images
    batches: Sequence[int] = BATCHES,
) -> list[dict[str, Any]]:
    """`compare` at each batch size, over as many whole batches as the images make.

    Raises:
        ValueError: when there are fewer images than the largest batch.
    """
    if len(images) < max(batches):
        raise ValueError(f"images must be at least {max(batches)}, the largest batch, got {len(images)}")
    rows = []
    for batch in batches:
        stop = len(images) - len(images) % batch
        output = torch.cat([run(images[i : i + batch]) for i in range(0, stop, batch)])
        rows.append({"batch": batch, "images": stop, **compare(reference[:stop], output)})
    return rows


def failures(
    name: str,
    rows: Sequence[dict[str, Any]],
    *,
    max_error: float | None = None,
    min_cosine: float | None = None,
) -> list[str]:
    """One sentence for each batch size that misses a limit.

    Args:
        name: of the step, for the sentence.
        rows: from `measure`.
        max_error: limit of the largest error, in units of max(1, largest reference value).
        min_cosine: limit of the lowest cosine.
    """
    found = []
    for row in rows:
        error, cosine = row["max_error"], row["cosine_min"]
        if max_error is not None and (error is None or error > max_error * max(1.0, row["max_reference"] or 1.0)):
            found.append(f"{name} at batch {row['batch']}: error {error}, limit {max_error}")
        if min_cosine is not None and (cosine is None or cosine < min_cosine):
            found.append(f"{name} at batch {row['batch']}: lowest cosine {cosine}, limit {min_cosine}")
    return found


def write_report(path: str | Path, report: dict[str, Any]) -> None:
    """JSON, replaced atomically."""
    partial = Path(path).with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(partial, path)
