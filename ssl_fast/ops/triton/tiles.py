"""Where the Triton kernels run, and how the work is cut up; tile_table.py holds the tiles (no autotuning)."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tile_table import INTERPRETER, SHARED_MEMORY, TABLE

MAX_DIM = 1024  # of rows that are multiplied in Triton
MAX_ROW = 8192  # numbers of a row that a program holds
ROW_PADDING = 128  # the row buffers are padded to a multiple of the largest block: tile loads need no mask
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tile:
    """block_m x block_n similarities at a time, and how the loop over the tiles is compiled."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, Any]:
        """How to compile and launch (fp fusion is named because its default changes between Triton releases)."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


ROW_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}  # kernels that walk rows, not tiles


def planes(dtype: torch.dtype) -> int:
    """The sum of how many bfloat16 numbers stands for a row's numbers; fp32 as torch is told to multiply matrices."""
    if dtype == torch.float32:
        return {"highest": 3, "high": 2, "medium": 1}[torch.get_float32_matmul_precision()]
    return 2 if dtype == torch.float16 else 1


def width(dim: int, num_planes: int) -> tuple[int, int]:
    """The padded embedding as (block_d, chunks): one power-of-two block while it fits, chunks of 128 beyond."""
    if dim <= (256 if num_planes == 1 else 128):
        return max(16, 1 << (dim - 1).bit_length()), 1
    return 128, -(-dim // 128)


def tile(kernel: str, num_planes: int, dim: int, device: torch.device) -> Tile:
    """The tile of a kernel of tile_table.py ("row_sum") for embeddings of `dim` numbers."""
    block_d, chunks = width(dim, num_planes)
    width_class: int | str = "chunked" if chunks > 1 else max(64, block_d)
    arch = architecture(device)
    if arch == "interpreter":
        return Tile(*INTERPRETER)
    row = TABLE[kernel, "one" if num_planes == 1 else "several", width_class]
    return Tile(*row[list(SHARED_MEMORY).index(arch)])


def architecture(device: torch.device) -> str:
    """The table's name for a device."""
    if device.type != "cuda":
        return "interpreter"
    major, minor = _capability(device)
    if (major, minor) in ((8, 0), (8, 7)):
        return "sm80"
    return {9: "sm90", 10: "sm100"}.get(major, "sm86")


@functools.lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.lru_cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors to fill (1 in the interpreter)."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def splits(tiles: int, columns: int, processors: int, most: int) -> int:
    """In how many parts to cut the column loop so that `tiles` row tiles keep all processors busy.

    The smallest number whose last wave leaves at most a tenth of the processors idle, or else the best one; a part
    keeps at least one of the `columns` column tiles.
    """
    best, best_use = 1, 0.0
    for parts in range(1, max(1, min(most, columns)) + 1):
        programs = tiles * parts
        use = programs / (-(-programs // processors) * processors)
        if use > best_use:
            best, best_use = parts, use
        if use >= 0.9:
            break
    return best


def partition(rows: int, columns: int, tile: Tile, device: torch.device, most: int) -> tuple[int, int, int]:
    """Row tiles, parts of the column loop, columns of a part (a multiple of the tile's)."""
    row_tiles = -(-rows // tile.block_m)
    column_tiles = max(1, -(-columns // tile.block_n))
    parts = splits(row_tiles, column_tiles, num_processors(device), most)
    per_part = -(-column_tiles // parts)
    return row_tiles, -(-column_tiles // per_part), per_part * tile.block_n


def interpreted() -> bool:
    """Whether Triton runs its kernels in the interpreter in this process (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "y", "yes", "true", "on"}


def unavailable(*tensors: Tensor, products: bool = True) -> str | None:
    """Why the kernels cannot take these tensors; None if they can. Without tensors: whether they can run at all.

    Args:
        tensors: what the op is called with.
        products: whether rows are multiplied in Triton; otherwise whole rows are held, and cuBLAS multiplies.
    """
    if not _has_triton():
        return "the package triton is not installed"
    if not interpreted():
        reason = _no_device() or next(filter(None, (_wrong_device(t, products) for t in tensors)), None)
        if reason:
            return reason
    return next(filter(None, (_wrong_values(t, MAX_DIM if products else MAX_ROW) for t in tensors)), None)


@functools.lru_cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.lru_cache
def _triton_version() -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])


def _no_device() -> str | None:
    if not torch.cuda.is_available():
        return "there is no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    if torch.version.hip is not None:
        return "the tiles are tuned for NVIDIA GPUs only"
    return None


def _wrong_device(tensor: Tensor, products: bool = True) -> str | None:
    if tensor.device.type != "cuda":
        return f"tensors are on {tensor.device.type} (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    if _capability(tensor.device) < (8, 0):
        return "the GPU's compute capability is below 8.0"
    several = tensor.dtype in (torch.float32, torch.float16) and tensor.ndim == 2
    if products and several and architecture(tensor.device) == "sm100" and _triton_version() < (3, 9):
        # Triton 3.6 compiles chained products of sm_100 into a trap; 3.9 was found good.
        return "float32 and float16 rows need Triton 3.9 on this GPU"
    return None


def _wrong_values(tensor: Tensor, most: int) -> str | None:
    if tensor.is_floating_point() and tensor.ndim > 0 and tensor.dtype not in _DTYPES:
        return f"{str(tensor.dtype).removeprefix('torch.')} is not supported (float32, bfloat16 and float16 are)"
    if tensor.ndim == 2 and tensor.shape[1] > most:
        return f"embeddings have {tensor.shape[1]} dimensions (at most {most})"
    return None


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's GPU the current one while kernels are launched (Triton launches on the current device)."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def device_scalar(value: float | Tensor, device: torch.device) -> float | Tensor:
    """A temperature as the kernels take it: a number of the host, or a tensor on `device` that is never read here."""
    if isinstance(value, Tensor):
        return value.detach() if value.device == device else float(value)
    return float(value)


def bounded(inv_temperature: float | Tensor, normalize: bool) -> bool:
    """Whether exp(s_ij - inv_temperature) stays within fp32: unit vectors, |s_ij| <= 40, known to the host."""
    return normalize and not isinstance(inv_temperature, Tensor) and 1e-6 <= inv_temperature <= 40.0
