"""From a trained model to files that serve: ONNX, TensorRT engines, and a report of how far each is from PyTorch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssl_fast.export import parity
from ssl_fast.export.engine import Engine
from ssl_fast.export.onnx import PRECISIONS, export_onnx, input_shape
from ssl_fast.export.tensorrt import (
    COMPATIBILITY,
    CURRENT,
    Api,
    build_engine,
    find_api,
    gpu_architecture,
    timing_cache_path,
)

__all__ = ["Engine", "ExportConfig", "export_model", "export_onnx"]


@dataclass
class ExportConfig:
    """What to export and how close it must be.

    Attributes:
        precision: any of fp32, fp16; engines are built from the last of them.
        opset: ONNX operator set.
        min_batch, opt_batch, max_batch: the engines' batch profile.
        tensorrt: "auto" (engines where a builder is installed), "off", "require".
        targets: architectures of the engines, SM80, SM89, SM120 ...; empty: the GPU present, or these three.
        timing_cache: folder of TensorRT's timing caches; empty: beside the engines.
        fp32_max_error: limit in units of max(1, largest output).
        fp16_min_cosine: limit of the lowest cosine of FP16 ONNX against fp32 PyTorch.
        engine_min_cosine: the same of an engine, where a GPU can run it.
        seed: of the random images, where no real ones are given.
    """

    precision: list[str] = field(default_factory=lambda: list(PRECISIONS))
    opset: int = 20
    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 64
    tensorrt: str = "auto"
    targets: list[str] = field(default_factory=list)
    timing_cache: str = ""
    fp32_max_error: float = 1e-5
    fp16_min_cosine: float = 0.9999
    engine_min_cosine: float = 0.999
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError on a value that cannot be."""
        if not self.precision or not set(self.precision) <= set(PRECISIONS):
            raise ValueError(f"export.precision must list some of {', '.join(PRECISIONS)}, got {list(self.precision)}")
        if self.tensorrt not in ("auto", "off", "require"):
            raise ValueError(f"export.tensorrt must be auto, off or require, got {self.tensorrt!r}")
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            batches = (self.min_batch, self.opt_batch, self.max_batch)
            raise ValueError(f"export.min_batch, opt_batch, max_batch must be in rising order from 1, got {batches}")


def export_model(
    config: ExportConfig,
    model: nn.Module,
    preprocessing: dict[str, Any],
    folder: str | Path,
    *,
    classes: Sequence[str] = (),
    images: Tensor | None = None,  # [M, C, H, W] normalised, M >= 8
) -> dict[str, Any]:
    """Write `model.onnx`, `model_fp16.onnx`, `model_fp16_sm80.engine` ... and `parity.json` into `folder`.

    Args:
        config: what and how.
        model: backbone, or backbone and head, [N, C, H, W] -> [N, F]; put in eval mode on the CPU.
        preprocessing: from `load_backbone`.
        folder: made where it does not exist.
        classes: names of the outputs of a head; the output is then called `logits`, otherwise `feature`.
        images: real images for the parity report; seeded noise without them.

    Returns:
        onnx and engines (a list of files each; `run` is true where the engine was run here), parity (rows by file),
        tensorrt (what was built, or why nothing).

    Raises:
        ValueError: on a wrong option.
        RuntimeError: when a file misses its limit (`parity.json` is written before), or a build fails.
        ImportError: when a package is missing, or a builder was required and there is none.
    """
    config.check()
    api, targets, message = _plan_engines(config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if images is None:
        images = parity.random_images(input_shape(preprocessing), max(parity.BATCHES), config.seed)
    reference = parity.torch_runner(model)(images)
    report: dict[str, Any] = {"onnx": [], "engines": [], "parity": {}, "tensorrt": message}
    missed = _export_onnx_files(config, model, preprocessing, classes, folder, images, reference, report)
    parity.write_report(folder / "parity.json", report)  # here too: a build may fail, and the files above are good
    if api is not None and not missed:
        missed = _build_engines(config, api, targets, folder, images, reference, report)
    parity.write_report(folder / "parity.json", report)
    if missed:
        raise RuntimeError("exported files are too far from PyTorch: " + "; ".join(missed))
    return report


def _plan_engines(config: ExportConfig) -> tuple[Api | None, list[str], str]:
    """The builder, its targets, and a sentence for the report. Before any work, so that what is refused costs none."""
    if config.tensorrt == "off":
        return None, [], "off"
    api, targets, reason = find_api(config.targets, gpu_architecture())
    if api is not None:
        return api, targets, f"{api.kind} {api.version} for {', '.join(targets)}"
    if config.tensorrt == "require":
        raise ImportError(f"export.tensorrt=require: no engine can be built: {reason}")
    return None, [], f"no engine was built: {reason}"


def _name(precision: str) -> str:
    return "model" if precision == "fp32" else f"model_{precision}"


def _export_onnx_files(
    config: ExportConfig,
    model: nn.Module,
    preprocessing: dict[str, Any],
    classes: Sequence[str],
    folder: Path,
    images: Tensor,  # [M, C, H, W]
    reference: Tensor,  # [M, F]
    report: dict[str, Any],
) -> list[str]:
    """Write each precision and measure it; returns the limits missed."""
    missed = []
    output = "logits" if classes else "feature"
    for precision in config.precision:
        start = time.perf_counter()
        path = folder / f"{_name(precision)}.onnx"
        export_onnx(model, path, preprocessing, precision=precision, output=output, classes=classes, opset=config.opset)
        seconds = round(time.perf_counter() - start, 3)
        report["onnx"].append(
            {"file": path.name, "precision": precision, "bytes": path.stat().st_size, "seconds": seconds}
        )
        rows = report["parity"][path.name] = parity.measure(parity.onnx_runner(path), images, reference)
        if precision == "fp32":
            missed += parity.failures(path.name, rows, max_error=config.fp32_max_error)
        else:
            missed += parity.failures(path.name, rows, min_cosine=config.fp16_min_cosine)
    return missed


def _build_engines(
    config: ExportConfig,
    api: Api,
    targets: Sequence[str],
    folder: Path,
    images: Tensor,  # [M, C, H, W]
    reference: Tensor,  # [M, F]
    report: dict[str, Any],
) -> list[str]:
    """One engine for each target, run where this GPU can run it; returns the limits missed."""
    missed = []
    name = _name(config.precision[-1])
    here = gpu_architecture()
    for target in targets:
        path = folder / f"{name}_{target.lower()}.engine"
        cache = timing_cache_path(config.timing_cache or folder, api, here or "none", target)
        batch = (config.min_batch, config.opt_batch, config.max_batch)
        row = build_engine(folder / f"{name}.onnx", path, api=api, target=target, batch=batch, timing_cache=cache)
        runs_here = here is not None and target in (CURRENT, here, *COMPATIBILITY)
        report["engines"].append(row | {"run": runs_here})
        if runs_here:
            rows = report["parity"][path.name] = _run_engine(config, Engine(path, api), images, reference)
            missed += parity.failures(path.name, rows, min_cosine=config.engine_min_cosine)
    return missed


def _run_engine(
    config: ExportConfig,
    engine: Engine,
    images: Tensor,  # [M, C, H, W]
    reference: Tensor,  # [M, F]
) -> list[dict[str, Any]]:
    batches = [batch for batch in parity.BATCHES if config.min_batch <= batch <= config.max_batch]
    return parity.measure(lambda x: engine(x).cpu(), images, reference, batches or [config.opt_batch])
