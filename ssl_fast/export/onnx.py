"""PyTorch -> ONNX, in fp32 and in a strongly typed FP16 form that TensorRT 11 and TensorRT-RTX take as it is.

The graph's input is a batch of *normalised* images, as every engine of `ssl_fast.data` makes them: normalisation stays
outside, because what feeds a server (DALI, torchvision, our kernels) does it for nothing in the pass that decodes or
crops. How to do it is in the file's metadata: `mean`, `std`, `input_size`, `preprocessing`, `classes`.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = ("fp32", "fp16")
INPUT = "image"
BATCH = "batch"
LIMIT = 2 * 1024**3  # a protobuf file cannot be larger; above it the weights go into a file of their own


class HalfPrecision(nn.Module):
    """`module` computed in FP16, with fp32 in and out, so that clients need not know."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(
        self,
        x: Tensor,  # [N, C, H, W] fp32
    ) -> Tensor:  # [N, F] or [N, K] fp32
        """The module's output, cast to fp32."""
        out: Tensor = self.module(x.half())
        return out.float()


def input_shape(preprocessing: Mapping[str, Any]) -> tuple[int, int, int]:
    """(C, H, W) that the evaluation preprocessing makes.

    Raises:
        ValueError: when `size` is missing, neither `channels` nor `mean` gives C, or the backbone takes clips.
    """
    if preprocessing.get("kind", "image") == "clip":
        raise ValueError("input: expected a backbone of images, got one of clips, which the export does not know yet")
    size, channels = preprocessing.get("size"), preprocessing.get("channels") or len(preprocessing.get("mean", ()))
    if not size or not channels:
        raise ValueError(f"preprocessing needs size and channels (or mean), got {sorted(preprocessing)}")
    return int(channels), int(size), int(size)


def metadata(preprocessing: Mapping[str, Any], classes: Sequence[str], precision: str) -> dict[str, str]:
    """The file's metadata: values are JSON, so that lists of numbers come back exactly."""
    content = {
        "input_size": input_shape(preprocessing),
        "mean": preprocessing.get("mean"),
        "std": preprocessing.get("std"),
        "classes": list(classes),
        "preprocessing": dict(preprocessing),
        "precision": precision,
    }
    return {name: json.dumps(value) for name, value in content.items()}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that `export_onnx` wrote, decoded."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return {entry.key: json.loads(entry.value) for entry in model.metadata_props}


def _require() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX export needs {error.name}: pip install ssl_fast[recipes]") from error


def _trace(model: nn.Module, shape: tuple[int, int, int], output: str, opset: int) -> Any:
    """torch.onnx's program, with the batch as the one dynamic axis."""
    # two images, not one: the exporter would take a batch of one for a constant
    example = torch.zeros(2, *shape)
    batch = torch.export.Dim(BATCH, min=1)
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[output],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def _strip_traces(program: Any) -> None:
    """Remove the exporter's notes: they hold source lines and folder names of this machine."""
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*program.model.graph.inputs, *program.model.graph.initializers.values()):
        value.metadata_props.clear()


def export_onnx(
    model: nn.Module,
    path: str | Path,
    preprocessing: Mapping[str, Any],
    *,
    precision: str = "fp32",
    output: str = "feature",
    classes: Sequence[str] = (),
    opset: int = 20,
) -> Path:
    """Write `model` as ONNX, input `image` [batch, C, H, W] fp32 normalised, one fp32 output [batch, F].

    Args:
        model: backbone, or backbone and head; put in eval mode on the CPU, unchanged otherwise.
        path: file to write, replaced.
        preprocessing: the evaluation view's fields with `size`, `channels`, `mean`, `std`.
        precision: "fp32", or "fp16": weights and arithmetic in half, every type explicit in the graph.
        output: name of the output.
        classes: names of the output's columns, if it has such.
        opset: ONNX operator set; 20 is what TensorRT 10 and 11 both read.

    Raises:
        ValueError: on an unknown precision, or preprocessing without a size.
        ImportError: when onnx or onnxscript is not installed.
    """
    _require()
    if precision not in PRECISIONS:
        raise ValueError(f"export.precision must be of {', '.join(PRECISIONS)}, got {precision!r}")
    size = sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    wrapped = HalfPrecision(model).eval() if precision == "fp16" else model
    program = _trace(wrapped, input_shape(preprocessing), output, opset)
    _strip_traces(program)
    program.model.metadata_props.update(metadata(preprocessing, classes, precision))
    program.save(path, external_data=size >= LIMIT)
    return Path(path)
