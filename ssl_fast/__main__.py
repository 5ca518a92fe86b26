"""`python -m ssl_fast`: versions, devices, and per op which implementations are available, or why not."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from ssl_fast.ops import dispatch
from ssl_fast.ops.cpp import why_not_built

_PACKAGES = ("ssl_fast", "torch", "torchvision", "timm", "triton", "onnx", "onnxruntime", "nvidia-dali-cuda130")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _versions() -> list[str]:
    return [f"{'python':<30}{platform.python_version()}", *(f"{name:<30}{_version(name)}" for name in _PACKAGES)]


def _cpu() -> str:
    missing = why_not_built("_cpu")
    if missing is not None:
        return missing
    import ssl_fast._cpu as cpu

    return f"{torch.get_num_threads()} threads, kernels for {cpu.isa()}"


def _cuda() -> list[str]:
    built = why_not_built("_cuda") or "ssl_fast._cuda is built"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["no CUDA device"]
    return [f"{'cuda':<30}{name}" for name in (*names, built)]


def _ops() -> list[str]:
    lines = []
    for op, implementations in dispatch.backends().items():
        lines += [f"{op} ({name})".ljust(30) + state for name, state in implementations.items() if name != "taken"]
    return lines


def main() -> None:
    """Prints the report."""
    for title, lines in (
        ("Versions", _versions()),
        ("Devices", [f"{'cpu':<30}{_cpu()}", *_cuda()]),
        ("Ops", _ops()),
    ):
        print(title, *(f"  {line}" for line in lines), "", sep="\n")


if __name__ == "__main__":
    main()
