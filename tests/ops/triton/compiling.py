"""Compiles for GPUs that are not here: records what the launchers would launch, and asks ptxas what it came to."""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CAPABILITY = {"sm80": 80, "sm86": 86, "sm90": 90, "sm100": 100}
_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
Launch = tuple[Any, dict[str, Any], dict[str, Any]]  # kernel, arguments by name, options


def record(call: Callable[[], object], arch: str, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The kernels that `call` launches on a GPU of this architecture with 132 processors; none of them runs."""
    import triton

    from ssl_fast.ops.triton import tiles

    launches: list[Launch] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        named = dict(zip(kernel.arg_names, args, strict=False))
        named |= {name: value for name, value in kwargs.items() if name in kernel.arg_names}
        launches.append((kernel, named, {k: v for k, v in kwargs.items() if k not in kernel.arg_names}))

    with monkeypatch.context() as patch:
        patch.setattr(triton.runtime.JITFunction, "run", run)
        patch.setattr(tiles, "architecture", lambda device: arch)
        patch.setattr(tiles, "num_processors", lambda device: 132)
        call()
    return launches


def compiled(launch: Launch, arch: str) -> Any:
    """The kernel compiled for `arch`, its arguments specialised as at a launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, values, options = launch
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for place, name in enumerate(kernel.arg_names):
        value = values[name]
        signature[name] = _type(value, kernel.params[place].is_constexpr)
        if signature[name] == "constexpr":
            constants[name] = value
        elif isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", CAPABILITY[arch], 32), options=options)


def _type(value: Any, constexpr: bool) -> str:
    if constexpr or value is None or (type(value) is int and value == 1):
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def resources(kernel: Any) -> dict[str, int]:
    """Registers a thread, stack bytes a thread (spills live there), local and static shared bytes of a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = os.path.join(folder, "kernel.cubin")
        Path(cubin).write_bytes(kernel.asm["cubin"])
        text = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found, text
    return dict(zip(("registers", "stack", "static", "local"), map(int, found.groups()), strict=True))
