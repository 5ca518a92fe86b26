"""Builds `ssl_fast._cpu` and, where nvcc is found, `ssl_fast._cuda`. Everything else stands in pyproject.toml.

A machine that cannot build them still gets a working package: the ops then run their PyTorch reference. What was
built, and why the rest was not, is written to `ssl_fast/_build.json`; `python -m ssl_fast` prints it.

Environment:
    SSL_FAST_CUDA: 0 never builds the CUDA module, 1 insists on it (or fails). Default: where nvcc is found.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
stamp = runpy.run_path(str(ROOT / "ssl_fast" / "ops" / "cpp" / "sources.py"))["stamp"]


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    in_home = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None
    return in_home or shutil.which("nvcc")


def find_tool(name: str) -> str | None:
    """The first in PATH that runs: the launcher of a pip-installed CMake does not, in pip's isolated build."""
    for folder in os.get_exec_path():
        path = shutil.which(name, path=folder)
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


def cuda_wanted() -> bool:
    """Whether to build the CUDA module; raises where SSL_FAST_CUDA=1 cannot be honoured."""
    asked = os.environ.get("SSL_FAST_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"SSL_FAST_CUDA must be 0 or 1, not {asked!r}.")
    if asked == "1" and find_nvcc() is None:
        raise SystemExit(
            "SSL_FAST_CUDA=1 but nvcc is neither in PATH nor in CUDA_HOME/bin: install the CUDA toolkit or unset it."
        )
    return asked != "0" and find_nvcc() is not None


class CMakeBuild(build_ext):
    """Runs CMake once per module, each in its own folder, so that one failing never breaks the other."""

    def run(self) -> None:
        self.report = {"_cpu": "not built", "_cuda": "built without CUDA (SSL_FAST_CUDA=0)"}
        if os.environ.get("SSL_FAST_CUDA") != "0":
            self.report["_cuda"] = "nvcc not found when ssl_fast was installed"
        super().run()
        self.write_report()

    def build_extension(self, ext: Extension) -> None:
        name = ext.name.rpartition(".")[2]
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            self.cmake(name, output)
            self.report[name] = "built"
        except (CompileError, OSError, subprocess.CalledProcessError) as error:
            reason = str(error)
            if isinstance(error, subprocess.CalledProcessError):
                reason = f"`{Path(error.cmd[0]).name} {error.cmd[1]}` failed when ssl_fast was installed"
            self.report[name] = reason
            if name == "_cuda" and os.environ.get("SSL_FAST_CUDA") == "1":
                raise SystemExit(f"SSL_FAST_CUDA=1 but the CUDA module cannot be built: {reason}.") from error
            print(f"\nssl_fast: {ext.name} was NOT built: {reason}.", file=sys.stderr)
            print("ssl_fast: the package still works, with slower implementations of its ops.\n", file=sys.stderr)

    def cmake(self, name: str, output: Path) -> None:
        cmake = find_tool("cmake")
        if cmake is None:
            raise CompileError("cmake not found when ssl_fast was installed")
        folder = self.build_folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([cmake, *self.configure_arguments(name, output), "-S", str(ROOT), "-B", str(folder)], check=True)
        subprocess.run([cmake, "--build", str(folder), "--parallel", str(os.cpu_count() or 1)], check=True)

    def build_folder(self, name: str) -> Path:
        """Inside the checkout, so that the next build compiles only what changed."""
        return ROOT / "build" / f"{name}-{sys.implementation.cache_tag}"

    def configure_arguments(self, name: str, output: Path) -> list[str]:
        import pybind11

        arguments = [
            f"-DSSL_FAST_MODULE={name}",
            f"-DSSL_FAST_SOURCES={stamp(name)}",
            f"-DSSL_FAST_SUFFIX={output.name.removeprefix(name)}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        if ninja := find_tool("ninja"):
            arguments += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        if name == "_cuda":
            arguments.append(f"-DCMAKE_CUDA_COMPILER={find_nvcc()}")
        return arguments

    def write_report(self) -> None:
        folder = ROOT / "ssl_fast" if self.editable_mode or self.inplace else Path(self.build_lib) / "ssl_fast"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build.json").write_text(json.dumps(self.report, indent=2) + "\n")


def build_requirements() -> list[str]:
    """CMake and ninja from the package index, only where the machine has none of its own."""
    return [tool for tool in ("cmake", "ninja") if find_tool(tool) is None]


# `optional`: setuptools then does not miss a module that could not be built.
modules = [Extension("ssl_fast._cpu", [], optional=True)]
if cuda_wanted():
    modules.append(Extension("ssl_fast._cuda", [], optional=True))

setup(ext_modules=modules, cmdclass={"build_ext": CMakeBuild}, setup_requires=build_requirements())
