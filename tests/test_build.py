"""The build: what a machine without tools still gets, what insists, and what the modules depend on."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ssl_fast import backends
from ssl_fast.ops import cpp, dispatch
from ssl_fast.ops.cpp import sources
from ssl_fast.ops.cpp.sources import stamp

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what the build reads, with no earlier build beside it."""
    folder = tmp_path / "source"
    (folder / "ssl_fast").mkdir(parents=True)
    (folder / "ssl_fast" / "__init__.py").touch()
    (folder / "README.md").touch()
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    stamp = Path("ssl_fast", "ops", "cpp", "sources.py")
    (folder / stamp).parent.mkdir(parents=True)
    shutil.copy(ROOT / stamp, folder / stamp)
    return folder


def build_wheel(source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What pip runs in a prepared environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "SSL_FAST", "CXX"))}
    command = [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('wheels')"]
    return subprocess.run(command, cwd=source, env=inherited | environment, capture_output=True, text=True)


def report_of(source: Path) -> dict[str, str]:
    """`_build.json` in the wheel."""
    (wheel,) = (source / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        assert not [name for name in files.namelist() if name.endswith(".so")]
        report: dict[str, str] = json.loads(files.read("ssl_fast/_build.json"))
    return report


def test_no_compiler_is_no_failure(source: Path) -> None:
    result = build_wheel(source, CXX="/nonexistent/c++", SSL_FAST_CUDA="0")
    assert result.returncode == 0
    assert "ssl_fast._cpu was NOT built: `cmake -DSSL_FAST_MODULE=_cpu` failed" in result.stderr
    assert "the package still works" in result.stderr
    assert "failed when ssl_fast was installed" in report_of(source)["_cpu"]
    assert report_of(source)["_cuda"] == "built without CUDA (SSL_FAST_CUDA=0)"


@pytest.mark.parametrize("broken", [False, True])
def test_no_cmake_is_no_failure(source: Path, tmp_path: Path, broken: bool) -> None:
    """A launcher that cannot start is none: pip's isolated build hides the package behind the one in an environment."""
    if broken:
        (tmp_path / "cmake").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "cmake").chmod(0o755)
    result = build_wheel(source, PATH=str(tmp_path))
    assert result.returncode == 0
    assert report_of(source) == {
        "_cpu": "cmake not found when ssl_fast was installed",
        "_cuda": "nvcc not found when ssl_fast was installed",
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [("1", "SSL_FAST_CUDA=1 but nvcc is neither in PATH nor in CUDA_HOME/bin"), ("yes", "must be 0 or 1, not 'yes'")],
)
def test_cuda_can_be_insisted_on(source: Path, tmp_path: Path, value: str, message: str) -> None:
    result = build_wheel(source, PATH=str(tmp_path), SSL_FAST_CUDA=value)
    assert result.returncode != 0
    assert message in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["_cpu", "_cuda"])
def test_modules_know_no_torch(name: str) -> None:
    found = importlib.util.find_spec(f"ssl_fast.{name}")
    if found is None or found.origin is None:
        pytest.skip(f"ssl_fast.{name} was not built here")
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    dynamic = subprocess.run([readelf, "-d", found.origin], capture_output=True, text=True, check=True).stdout
    needed = [line for line in dynamic.splitlines() if "NEEDED" in line]
    assert needed and not any(word in line for line in needed for word in ("torch", "c10", "cudart", "gomp"))


def test_the_module_is_built_from_these_sources() -> None:
    cpu = pytest.importorskip("ssl_fast._cpu", reason="the C++ module was not built")
    assert cpu.sources == stamp("_cpu")


@pytest.fixture
def stale(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The native module is of other sources than those beside the package."""
    pytest.importorskip("ssl_fast._cpu", reason="the C++ module was not built")
    monkeypatch.setattr(cpp, "stamp", lambda name: "of other sources")
    cpp.why_not_built.cache_clear()
    yield
    cpp.why_not_built.cache_clear()


@pytest.mark.usefixtures("stale")
@pytest.mark.parametrize("op", ["nt_xent", "multi_tensor"])
def test_a_stale_module_is_not_used(op: str) -> None:
    told = "ssl_fast._cpu was built from other sources: run `pip install -e .` again"
    assert backends()[op]["cpp"] == told
    assert dispatch.choose(op, "auto", torch.zeros(1)).__name__.startswith("ssl_fast.ops.reference.")
    with pytest.raises(RuntimeError, match="was built from other sources"):
        dispatch.choose(op, "cpp", torch.zeros(1))


def test_any_source_changes_the_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_CSRC", tmp_path / "csrc")
    assert stamp("_cpu") is None  # a wheel: nothing to compare with
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    first = stamp("_cpu"), stamp("_cuda")
    (tmp_path / "csrc" / "cpu" / "isa" / "new.cpp").touch()
    second = stamp("_cpu"), stamp("_cuda")
    assert first[0] != second[0] and first[1] == second[1]
    (tmp_path / "csrc" / "ops.h").write_text("")
    assert stamp("_cpu") != second[0] and stamp("_cuda") != second[1]


def test_report() -> None:
    result = subprocess.run([sys.executable, "-m", "ssl_fast"], capture_output=True, text=True, check=True)
    lines = dict(line.strip().rsplit("  ", 1) for line in result.stdout.splitlines() if "  " in line.strip())
    found = {name.strip(): state.strip() for name, state in lines.items()}
    assert found["nt_xent (reference)"] == found["info_nce (reference)"] == "available"
    assert found["nt_xent (cpp)"] == "available" or "ssl_fast._cpu is missing" in found["nt_xent (cpp)"]
