"""csrc/cuda as a Python module for CPU tensors: its kernels, translated to C++ and run thread by thread."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
_LAUNCH = re.compile(r"(\w+(?:<[\w, ]*>)?)\s*<<<(.*?)>>>\s*\(", re.S)
_DYNAMIC = re.compile(r"extern __shared__ (\w+) (\w+)\[\];")


def unavailable() -> str | None:
    """Why the module cannot be built here, or None."""
    if shutil.which("c++") is None:
        return "no C++ compiler is installed"
    if not Path(sysconfig.get_path("include"), "Python.h").exists() or find_spec("pybind11") is None:
        return "Python's headers or pybind11 are not installed"
    return None if headers() else "CUDA's headers are not installed"


def headers() -> list[Path]:
    """The folders of CUDA's headers: the toolkit's, or those that torch and Triton bring; none where they lack some."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and str(Path(nvcc).resolve().parents[1])]
    packages = [place for base in sys.path for place in Path(base).glob("nvidia/cu*/include")]
    packages += [Path(base) / "triton" / "backends" / "nvidia" / "include" for base in sys.path]
    choices = [[Path(home) / "include"] for home in homes if home] + [packages]
    wanted = ("cuda_bf16.h", "vector_functions.h", "nv/target", "crt/host_defines.h")
    complete = (c for c in choices if all(any((place / name).exists() for place in c) for name in wanted))
    return next(complete, [])


def translated(source: str) -> str:
    """A .cu file in C++: launches and dynamic shared memory are all of CUDA's syntax that a header cannot give."""
    source = _DYNAMIC.sub(r"\1* \2 = reinterpret_cast<\1*>(on_host::team->shared.get());", source)
    while found := _LAUNCH.search(source):
        end = _closing(source, found.end())
        call = f"{found[1]}({source[found.end() : end]})"
        source = f"{source[: found.start()]}on_host::launch({found[2]}, [&] {{ {call}; }}){source[end + 1 :]}"
    return source


def _closing(source: str, begin: int) -> int:
    """Where the bracket that was opened before `begin` is closed."""
    depth = 1
    for place in range(begin, len(source)):
        depth += {"(": 1, ")": -1}.get(source[place], 0)
        if depth == 0:
            return place
    raise ValueError("a launch whose bracket is not closed")


def build(folder: Path, *flags: str) -> Path:
    """Compiles into `folder`; the module's path.

    Raises:
        RuntimeError: what the compiler said.
    """
    import pybind11

    sources = [HERE / "runtime.cpp", CSRC / "bindings_cuda.cpp"]
    for source in sorted(CSRC.glob("cuda/*.cu")):
        sources.append(folder / f"{source.stem}.cpp")
        sources[-1].write_text(translated(source.read_text()))
    options = ["-std=c++17", "-O1", "-fPIC", "-w", "-pthread", '-DSSL_FAST_SOURCES="host"', *flags]
    places = [HERE, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    options += [f"-I{place}" for place in places] + [part for place in headers() for part in ("-isystem", str(place))]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        _run(["c++", *options, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    _run(["c++", "-shared", "-pthread", "-Wl,-Bsymbolic", *flags, *map(str, objects), "-o", str(module)])
    return module


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), *sys.argv[2:]))
