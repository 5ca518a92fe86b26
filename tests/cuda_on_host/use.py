"""Makes ssl_fast take csrc/cuda's kernels, built for the host, for tensors on the CPU."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import ssl_fast
from ssl_fast.data import engine_fused_gpu
from ssl_fast.ops.cuda import gradients, lamb, multi_tensor, sam


def loaded(path: Path) -> ModuleType:
    """The module at `path` (see build.py)."""
    # Not by its real name: pybind11 would hand out the module that was imported by it before.
    spec = importlib.util.spec_from_file_location("on_host._cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def on_host(module: ModuleType) -> Iterator[None]:
    """Within it `impl="cuda"` and the engine of views for a GPU take CPU tensors, and run there."""
    with contextlib.ExitStack() as stack:
        # Not patch.dict: it would take out what is imported in the meantime.
        stack.callback(_put, sys.modules.get("ssl_fast._cuda"))
        _put(module)
        stack.enter_context(patch.object(ssl_fast, "_cuda", module, create=True))
        for wrapper in (multi_tensor, gradients, lamb, sam, engine_fused_gpu):
            stack.enter_context(patch.object(wrapper, "unavailable", lambda *tensors: None))
            stack.enter_context(patch.object(wrapper, "place", lambda tensor: (0, 0)))
        stack.enter_context(patch.object(engine_fused_gpu, "_module", lambda: module))
        yield


def _put(module: ModuleType | None) -> None:
    sys.modules.pop("ssl_fast._cuda", None)
    if module is not None:
        sys.modules["ssl_fast._cuda"] = module
