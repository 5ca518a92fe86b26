"""ONNX -> TensorRT engine, one path for TensorRT 10, TensorRT 11 and TensorRT-RTX.

Precision lives in the ONNX file (a strongly typed network): TensorRT 11 has no FP16 flag any more, and 10 and RTX do
not need it. TensorRT builds on the GPU that the engine is for; TensorRT-RTX builds ahead of time for named
architectures, with no GPU at all, and specialises kernels when the engine is first run.

Engines are code: load only those that you built.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

INSTALL = "pip install ssl_fast[trt]"
# module of each kind, and the libraries that it needs in memory first, in this order
MODULES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}
RTX_LIBRARIES = ("libtensorrt_rtx.so*", "libtensorrt_onnxparser_rtx.so*")
AHEAD_OF_TIME = ("SM80", "SM89", "SM120")  # data-centre Ampere, Ada, consumer Blackwell
CURRENT = "CURRENT"
COMPATIBILITY = ("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")  # TensorRT's HardwareCompatibilityLevel


@dataclass(frozen=True)
class Api:
    """A TensorRT module that imports here.

    Attributes:
        kind: "tensorrt" or "tensorrt_rtx". version: as the module says. trt: the module.
    """

    kind: str
    version: str
    trt: Any


def load_api(kind: str) -> Api:
    """Import TensorRT ("tensorrt") or TensorRT-RTX ("tensorrt_rtx").

    Raises:
        RuntimeError: when it is not installed or does not load; the message says what to install.
    """
    if kind not in MODULES:
        raise ValueError(f"kind must be one of {', '.join(MODULES)}, got {kind!r}")
    try:
        if kind == "tensorrt_rtx":
            _load_rtx_libraries()
        trt = importlib.import_module(MODULES[kind])
    except (ImportError, OSError) as error:
        raise RuntimeError(f"{kind} is not available ({str(error).splitlines()[0]}): {INSTALL}") from error
    return Api(kind, str(trt.__version__), trt)


def _load_rtx_libraries() -> None:
    """The wheel's own loader goes by directory order, and the parser does not load before the library it links to."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    for folder in spec.submodule_search_locations or () if spec else ():
        for pattern in RTX_LIBRARIES:
            for library in sorted(Path(folder).glob(pattern)):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def gpu_architecture() -> str | None:
    """ "SM89" and the like for the first visible GPU, None without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"SM{major}{minor}"


def resolve_targets(api: Api, targets: Sequence[str], architecture: str | None) -> list[str]:
    """Architectures to build for, checked.

    Args:
        api: the builder.
        targets: SM80, SM89, SM120 ..., CURRENT (the GPU present) or, for TensorRT, AMPERE_PLUS and
            SAME_COMPUTE_CAPABILITY. Empty: the GPU present, or SM80, SM89 and SM120 where that cannot be.
        architecture: of the GPU present, from `gpu_architecture`.

    Raises:
        ValueError: on a target that this builder cannot build here.
    """
    if api.kind == "tensorrt_rtx":
        known = [name for name in api.trt.ComputeCapability.__members__ if name.startswith("SM")]
        if not targets:
            return [CURRENT] if architecture in known else list(AHEAD_OF_TIME)
        allowed = known + [CURRENT] * (architecture in known)
    else:
        allowed = [CURRENT, *COMPATIBILITY, str(architecture)] if architecture else []
    wanted = [target.upper() for target in targets] or [CURRENT]
    for target in wanted:
        if target not in allowed:
            here = f"{api.kind} {api.version}, GPU {architecture or 'none'}"
            raise ValueError(
                f"export.targets: {target} cannot be built here ({here}); possible: {', '.join(allowed) or 'none'}"
            )
    return wanted


def find_api(targets: Sequence[str], architecture: str | None) -> tuple[Api | None, list[str], str]:
    """The builder for these targets: TensorRT where there is a GPU for it and it can, else TensorRT-RTX.

    Returns:
        (api, resolved targets, "") or, where none is installed, (None, [], why).

    Raises:
        ValueError: when a builder is installed, but cannot build one of the targets here.
    """
    reason, refusal = "", None
    for kind in ("tensorrt", "tensorrt_rtx") if architecture else ("tensorrt_rtx",):
        try:
            api = load_api(kind)
        except RuntimeError as error:
            reason = str(error)
            continue
        try:
            return api, resolve_targets(api, targets, architecture), ""
        except ValueError as error:
            refusal = error
    if refusal is not None:
        raise refusal
    return None, [], reason


def make_logger(api: Api) -> Any:
    """A TensorRT logger that passes messages to `logging` and keeps the errors in `.errors`."""

    class Logger(api.trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            api.trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(api.trt.ILogger.Severity.ERROR):
                self.errors.append(message)
            logger.log(logging.WARNING if int(severity) <= 2 else logging.DEBUG, "%s", message)

    return Logger()


def _parse(api: Api, builder: Any, log: Any, onnx_path: Path) -> Any:
    """Strongly typed network of an ONNX file; the flag is needed by 10, and accepted or absent in later ones."""
    creation = api.trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(creation.STRONGLY_TYPED) if hasattr(creation, "STRONGLY_TYPED") else 0)
    parser = api.trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise RuntimeError(f"{api.kind} {api.version} cannot read {onnx_path.name}: {reasons}")
    return network


def _add_profile(builder: Any, network: Any, build_config: Any, batch: tuple[int, int, int]) -> None:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((size, *shape) for size in batch))
    if build_config.add_optimization_profile(profile) < 0:
        raise RuntimeError(f"TensorRT refused the batch profile {batch}")


def _set_target(api: Api, build_config: Any, target: str) -> None:
    if api.kind == "tensorrt_rtx":
        build_config.num_compute_capabilities = 1
        if not build_config.set_compute_capability(getattr(api.trt.ComputeCapability, target), 0):
            raise RuntimeError(f"{api.kind} {api.version} refused the target {target}")
    elif target in COMPATIBILITY:
        build_config.hardware_compatibility_level = getattr(api.trt.HardwareCompatibilityLevel, target)


def timing_cache_path(folder: str | Path, api: Api, architecture: str, target: str) -> Path:
    """One file for each version, GPU and compatibility level: a cache is worth nothing to another of them."""
    return Path(folder) / f"timing-{api.kind}-{api.version}-{architecture.lower()}-{target.lower()}.cache"


def _attach_timing_cache(build_config: Any, path: Path) -> None:
    """Use the file's timings; one that this driver does not accept is replaced by an empty cache."""
    cache = build_config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not build_config.set_timing_cache(cache, False):
        build_config.set_timing_cache(build_config.create_timing_cache(b""), False)


def _write(path: Path, content: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def build_engine(
    onnx_path: str | Path,
    engine_path: str | Path,
    *,
    api: Api,
    target: str,
    batch: tuple[int, int, int] = (1, 8, 64),
    timing_cache: Path | None = None,
) -> dict[str, Any]:
    """Build one engine.

    Args:
        onnx_path: strongly typed ONNX file with a dynamic first axis.
        engine_path: file to write, replaced atomically.
        api: from `load_api` or `find_api`.
        target: one of `resolve_targets`.
        batch: smallest, most usual and largest batch: TensorRT optimises for the second and refuses what is outside.
        timing_cache: file to read and renew; TensorRT only (RTX has no timings to keep).

    Returns:
        file, target, builder, version, bytes, seconds.

    Raises:
        ValueError: when the batch sizes are not in order.
        RuntimeError: when TensorRT refuses the file or the build; with its own words.
    """
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise ValueError(f"batch must be 1 <= min <= opt <= max, got {batch}")
    start = time.perf_counter()
    log = make_logger(api)
    builder = api.trt.Builder(log)
    network = _parse(api, builder, log, Path(onnx_path))
    build_config = builder.create_builder_config()
    _add_profile(builder, network, build_config, batch)
    _set_target(api, build_config, target)
    if timing_cache is not None and api.kind == "tensorrt":
        _attach_timing_cache(build_config, timing_cache)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        plan = builder.build_serialized_network(network, build_config)
    if plan is None:
        raise RuntimeError(
            f"{api.kind} {api.version} built no engine for {target}: {'; '.join(log.errors) or 'no reason'}"
        )
    _write(Path(engine_path), plan)
    if timing_cache is not None and api.kind == "tensorrt":
        cache = build_config.get_timing_cache()
        _write(timing_cache, cache.serialize())
    return {
        "file": Path(engine_path).name,
        "target": target,
        "builder": api.kind,
        "version": api.version,
        "bytes": Path(engine_path).stat().st_size,
        "seconds": round(time.perf_counter() - start, 3),
    }
