"""C++ kernels for the CPU: `ssl_fast._cpu`, which knows no torch. These files allocate and pass tensors: it asks for
their addresses (csrc/cpu/tensor.h), and takes None where there is none."""

import json
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ssl_fast.ops.cpp.sources import stamp

# DType in csrc/ops.h
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
NO_GRADIENTS: list[Tensor | None] = [None] * 5  # where none is wanted
# Like these a scalar is made in half the time that its shape, dtype and device take to read.
_SCALARS = {
    dtype: torch.empty((), dtype=torch.float64 if dtype == torch.float64 else torch.float32, device="cpu")
    for dtype in DTYPES
}


@cache
def module() -> ModuleType:
    """`ssl_fast._cpu`; ImportError where it was not built."""
    return import_module("ssl_fast._cpu")


@cache
def why_not_built(name: str) -> str | None:
    """Why the native module `name` ("_cpu" or "_cuda") is not there or not to be used; None when it is."""
    if find_spec(f"ssl_fast.{name}") is not None:
        try:
            built_from = getattr(import_module(f"ssl_fast.{name}"), "sources", "unknown")
        except ImportError as error:
            return f"ssl_fast.{name} cannot be imported ({error})"
        if stamp(name) in (None, built_from):
            return None
        return f"ssl_fast.{name} was built from other sources: run `pip install -e .` again"
    report = Path(__file__).parents[2] / "_build.json"
    reason = json.loads(report.read_text())[name] if report.exists() else "not built"
    return f"ssl_fast.{name} is missing ({reason}); install a C++ compiler and CMake, then ssl_fast again"


def unavailable(*tensors: Tensor) -> str | None:
    """Why the C++ kernels cannot take these tensors (of any number); None when they can."""
    for tensor in tensors:
        if not tensor.is_cpu:  # quicker than the name of its device
            return f"the C++ kernels take CPU tensors, got one on {tensor.device}"
        if tensor.dtype not in DTYPES:
            return f"the C++ kernels take float32, float64, bfloat16 and float16, got {tensor.dtype}"
        if type(tensor) is not Tensor and type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            return f"the C++ kernels take tensors with memory of their own, got a {type(tensor).__name__}"
    return why_not_built("_cpu")


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of losses and gradients: float64 for float64, float32 otherwise."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scalar_beside(rows: Tensor) -> Tensor:
    """Room for a loss [] of these rows."""
    return torch.empty_like(_SCALARS[rows.dtype])


def beside(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """Room for one gradient for each contiguous tensor that is given."""
    return [None if tensor is None else torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
