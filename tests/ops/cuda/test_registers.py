"""What the compiler makes of the CUDA kernels: nothing spills, and the registers leave room for many warps."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[3] / "csrc"
KERNELS = {
    "augment": {"weigh_kernel": 1, "resize_kernel": 2, "finish_kernel": 6},
    "gradients": {"square_sum_kernel": 8, "finish_sum_kernel": 1, "scale_kernel": 4, "centralize_kernel": 4},
    "lamb": {"lamb_moments_kernel": 4, "lamb_update_kernel": 4},
    "multi_tensor": {"lars_squares_kernel": 4, "lars_update_kernel": 4, "ema_kernel": 16, "lookahead_kernel": 4},
    "sam": {"sam_ascend_kernel": 4, "sam_sgd_kernel": 8, "sam_adamw_kernel": 4},
}
REGISTERS = dict.fromkeys(KERNELS, 128) | {"multi_tensor": 64}
ARCHITECTURES = ("80", "90a", "100")
EVERY_DAY = {("augment", "80"), ("lamb", "90a")}  # those that need the most
EACH = [
    pytest.param(name, architecture, marks=() if (name, architecture) in EVERY_DAY else pytest.mark.nightly)
    for name in KERNELS
    for architecture in ARCHITECTURES
]


def compiled(name: str, architecture: str, folder: Path) -> str:
    """What ptxas reports of csrc/cuda/<name>.cu."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc, "-std=c++17", "-O3", code, "-Xptxas", "-v", f"-I{CSRC}", "-c", "-o", str(folder / f"{name}.o")]
    done = subprocess.run([*command, str(CSRC / "cuda" / f"{name}.cu")], capture_output=True, text=True)
    if "Unsupported gpu architecture" in done.stderr:
        pytest.skip(f"this nvcc is too old for sm_{architecture}")
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(("name", "architecture"), EACH)
def test_kernels_keep_everything_in_registers(name: str, architecture: str, tmp_path: Path) -> None:
    report = compiled(name, architecture, tmp_path)
    entries = re.findall(r"Compiling entry function '(\w+)'", report)
    found = {kernel: sum(kernel in entry for entry in entries) for kernel in KERNELS[name]}
    assert found == KERNELS[name] and len(entries) == sum(found.values())
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(frames) >= len(entries) and set(frames) == {("0", "0", "0")}  # pow has a frame line of its own
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", report)) <= REGISTERS[name]
