"""What `auto` takes, what an explicit implementation answers, and that the import costs nothing."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

import ssl_fast
from ssl_fast.ops import dispatch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("op", ["nt_xent", "info_nce"])
def test_auto_takes_the_kernels_that_are_there(op: str) -> None:
    chosen = dispatch.choose(op, "auto", torch.ones(2, 2))
    built = find_spec("ssl_fast._cpu") is not None
    assert chosen.__name__ == f"ssl_fast.ops.{'cpp' if built else 'reference'}.{op}"
    assert dispatch.backends()[op]["taken"] == ("cpp" if built else "reference")
    assert dispatch.choose(op, "reference", torch.ones(2, 2)).__name__ == f"ssl_fast.ops.reference.{op}"
    assert dispatch.backends()[op]["taken"] == "reference"


def test_auto_falls_back_when_a_kernel_cannot_take_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    picky = ModuleType("picky")
    picky.unavailable = lambda *tensors: "it takes one row" if tensors and len(tensors[0]) != 1 else None  # type: ignore[attr-defined]
    load = dispatch._load
    monkeypatch.setattr(dispatch, "_load", lambda op, impl: picky if impl == "cpp" else load(op, impl))
    assert dispatch.choose("nt_xent", "auto", torch.ones(1, 2)) is picky
    assert dispatch.choose("nt_xent", "auto", torch.ones(2, 2)).__name__ == "ssl_fast.ops.reference.nt_xent"
    assert ssl_fast.backends()["nt_xent"]["cpp"] == "available"
    with pytest.raises(RuntimeError, match="impl='cpp' of nt_xent is not available: it takes one row"):
        ssl_fast.nt_xent(torch.ones(2, 2), torch.ones(2, 2), impl="cpp")


def test_a_module_that_cannot_be_imported_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("no such library")

    dispatch._load.cache_clear()
    monkeypatch.setattr(dispatch, "import_module", broken)
    try:
        assert ssl_fast.backends()["info_nce"]["cpp"] == (
            "ssl_fast.ops.cpp.info_nce cannot be imported (no such library)"
        )
    finally:
        dispatch._load.cache_clear()


def test_triton_says_why_it_cannot_run_here() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeError, match="impl='triton' of nt_xent is not available: "):
        ssl_fast.nt_xent(torch.ones(2, 2), torch.ones(2, 2), impl="triton")


def test_every_op_has_a_row_in_the_table() -> None:
    table = ssl_fast.backends()
    assert set(table) == set(dispatch.OPS)
    assert all(
        row["reference"] == "available" and set(row) == {*dispatch.OPS[op], "taken"} for op, row in table.items()
    )


def test_public_names_load_on_first_use_and_need_torch_alone() -> None:
    script = (
        "import sys, torch, time\n"
        "before, begin = set(sys.modules), time.perf_counter()\n"
        "import ssl_fast\n"
        "took, loaded = time.perf_counter() - begin, set(sys.modules) - before\n"
        "assert loaded == {'ssl_fast'}, loaded\n"
        "assert took < 0.05, took\n"
        "assert all(getattr(ssl_fast, name) is not None for name in dir(ssl_fast))\n"
        "ssl_fast.nt_xent(torch.ones(2, 2), torch.ones(2, 2))\n"
        "optional = {'torchvision', 'timm', 'hydra', 'omegaconf', 'triton'} & (set(sys.modules) - before)\n"
        "assert not optional, optional\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=120)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nt_xnet'"):
        ssl_fast.nt_xnet  # noqa: B018
    assert ssl_fast.__version__.count(".") == 2 and "nt_xent" in dir(ssl_fast)
