"""Damaged files decode or are refused, in bounded time; our C++ code makes views of them under AddressSanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_fast.ops.cpp.sources import stamp
from tests.data.mutations import fuzz

ROOT = Path(__file__).resolve().parents[2]


def check(verdicts, num):
    assert sum(verdicts.values()) == num
    # A file cut short is never taken, but for one whose last bytes say nothing; PNG's checksums see every other damage.
    for kind in ("JPEG", "PNG", "WEBP"):
        cut = {taken: verdicts[kind, "cut", taken] for taken in (True, False)}
        assert cut[False] > 0 and cut[True] <= 0.05 * sum(cut.values())
    assert verdicts["PNG", "flipped", True] <= 0.05 * verdicts["PNG", "flipped", False]
    assert verdicts["JPEG", "flipped", True] > 0  # and many decode: the test does not only see refusals


def test_damaged_files_decode_or_are_refused(capfd):
    check(fuzz(500, seed=0), 500)


@pytest.mark.nightly
def test_five_thousand_damaged_files_decode_or_are_refused(capfd):
    check(fuzz(5000, seed=1), 5000)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_our_code_under_address_sanitizer(tmp_path: Path) -> None:
    """Views of 5,000 mutations and of odd sizes, by each instruction set, with the module built for the purpose."""
    library = (
        subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True) if _tools() else None
    )
    if library is None or not Path(library.stdout.strip()).is_file():
        pytest.skip("needs g++ with libasan, cmake and pybind11")
    import pybind11

    arguments = [
        "-DSSL_FAST_MODULE=_cpu",
        "-DSSL_FAST_SUFFIX=.so",
        f"-DSSL_FAST_SOURCES={stamp('_cpu')}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={tmp_path}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DCMAKE_CXX_FLAGS=-fsanitize=address -fno-omit-frame-pointer -g1",
        "-DCMAKE_CXX_COMPILER=g++",
    ]
    subprocess.run(["cmake", *arguments, "-S", str(ROOT), "-B", str(tmp_path / "build")], check=True)
    subprocess.run(["cmake", "--build", str(tmp_path / "build"), "--parallel", str(os.cpu_count())], check=True)
    (module,) = tmp_path.glob("_cpu*.so")
    control = _run_under_asan(library.stdout.strip(), module, "generic", 0)
    assert control.returncode != 0 and "heap-buffer-overflow" in control.stderr
    for isa, num in (("generic", 500), ("avx2", 5000), ("avx512", 500)):
        done = _run_under_asan(library.stdout.strip(), module, isa, num)
        if "SSL_FAST_ISA" in done.stderr and "AddressSanitizer" not in done.stderr:
            continue  # this processor has not got it
        assert done.returncode == 0 and "views made of" in done.stdout, done.stderr[-4000:]


def _tools() -> bool:
    return bool(shutil.which("g++") and shutil.which("cmake"))


def _run_under_asan(library: str, module: Path, isa: str, num: int) -> "subprocess.CompletedProcess[str]":
    # Python itself never frees some of its memory; the C++ library is named so that exceptions can be intercepted.
    stdcpp = subprocess.run(["g++", "-print-file-name=libstdc++.so.6"], capture_output=True, text=True).stdout.strip()
    environment = os.environ | {
        "LD_PRELOAD": f"{library} {stdcpp}",
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "SSL_FAST_ISA": isa,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, "-m", "tests.data.mutations", str(num), str(module)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
