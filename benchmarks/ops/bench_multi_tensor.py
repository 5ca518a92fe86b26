"""LARS and EMA on the parameters of a ResNet-50, beside torch's foreach forms, timm and lightly, interleaved.

    python -m benchmarks.ops.bench_multi_tensor --threads 2

On a CPU, or on a GPU with `--device cuda`. The floor is the bytes that must move, 12 per parameter for EMA and 28 for
LARS (p and g twice; where the cache keeps them between the passes the result may beat it), over the best bandwidth that
`lerp_` of one tensor as large as the model reaches in the same run. Percentages are of medians.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.record import write
from ssl_fast.ops.dispatch import backends
from ssl_fast.ops.multi_tensor import ema_update_
from ssl_fast.optim import LARS

BYTES = {"ema": 12, "ema bf16 student": 10, "lars": 28}
LR, MOMENTUM, WEIGHT_DECAY = 0.3, 0.9, 1e-6


def resnet50() -> list[Tensor]:
    """The 161 parameters of a ResNet-50, from whichever package is installed."""
    if importlib.util.find_spec("timm"):
        import timm

        model = timm.create_model("resnet50")
    else:
        import torchvision

        model = torchvision.models.resnet50()
    return [p.detach() for p in model.parameters()]


def random_like(params: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn_like(p, dtype=dtype) for p in params]


def ema_contenders(params: list[Tensor], implementations: list[str]) -> dict[tuple[str, str], Callable[[], object]]:
    targets, sources, flat = random_like(params), random_like(params), torch.randn(2, sum(p.numel() for p in params))
    flat = flat.to(params[0].device)

    def mul_add() -> None:
        torch._foreach_mul_(targets, 0.996)
        torch._foreach_add_(targets, sources, alpha=0.004)

    half = random_like(params, torch.bfloat16)
    table: dict[tuple[str, str], Callable[[], object]] = {
        ("floor", "lerp_ of one tensor"): lambda: flat[0].lerp_(flat[1], 0.004),
        ("ema", "foreach mul, add"): mul_add,
        ("ema", "foreach lerp"): lambda: torch._foreach_lerp_(targets, sources, 0.004),
    }
    for impl in implementations:
        table["ema", f"ssl_fast {impl}"] = lambda impl=impl: ema_update_(targets, sources, 0.996, impl=impl)
        table["ema bf16 student", f"ssl_fast {impl}"] = lambda impl=impl: ema_update_(targets, half, 0.996, impl=impl)
    return table


def lars_contenders(params: list[Tensor], implementations: list[str]) -> dict[tuple[str, str], Callable[[], object]]:
    def copies() -> list[nn.Parameter]:
        own = [nn.Parameter(p.clone()) for p in params]
        for p, g in zip(own, random_like(params), strict=True):
            p.grad = g * 1e-3
        return own

    options = {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    table: dict[tuple[str, str], Callable[[], object]] = {}
    if importlib.util.find_spec("timm"):
        from timm.optim.lars import Lars

        table["lars", "timm Lars"] = Lars(copies(), foreach=False, **options).step
        table["lars", "timm Lars foreach"] = Lars(copies(), foreach=True, **options).step
    if importlib.util.find_spec("lightly"):
        from lightly.utils import lars as lightly_lars

        table["lars", "lightly LARS"] = lightly_lars.LARS(copies(), **options).step
    for impl in implementations:
        table["lars", f"ssl_fast {impl}"] = LARS(copies(), impl=impl, **options).step
    return table


def clock(run: Callable[[], object], device: str) -> float:
    """Milliseconds of one call: CUDA events on a GPU, wall clock on a CPU."""
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def measure(table: dict[tuple[str, str], Callable[[], object]], rounds: int, device: str) -> list[dict[str, object]]:
    times: dict[tuple[str, str], list[float]] = {name: [] for name in table}
    for i in range(rounds + 2):
        for name, run in table.items():
            milliseconds = clock(run, device)
            if i >= 2:  # the first rounds make state and load kernels
                times[name].append(milliseconds)
    return [
        {"op": op, "implementation": name, "ms": statistics.median(taken), "best_ms": min(taken)}
        for (op, name), taken in times.items()
    ]


def percent_of_floor(rows: list[dict[str, object]], bytes_moved: dict[str, int] = BYTES) -> list[dict[str, object]]:
    """Adds the column floor_percent, from the row "floor" and the bytes per parameter that each op must move."""
    floor_ms = next(float(str(row["best_ms"])) for row in rows if row["op"] == "floor")
    for row in rows:
        moved = bytes_moved.get(str(row["op"]), 12) / 12
        row["floor_percent"] = 100 * floor_ms * moved / float(str(row["ms"]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    params = [p.to(arguments.device) for p in resnet50()]
    native = "cuda" if arguments.device == "cuda" else "cpp"
    usable = [impl for impl in (native, "reference") if backends()["multi_tensor"][impl] == "available"]
    table = {**ema_contenders(params, usable), **lars_contenders(params, usable)}
    rows = percent_of_floor(measure(table, arguments.rounds, arguments.device), BYTES)
    for row in rows:
        row |= {"threads": arguments.threads, "parameters": sum(p.numel() for p in params), "tensors": len(params)}
        times = f"{row['ms']:8.2f} ms (best {row['best_ms']:.2f})"
        print(f"{row['op']:<18}{row['implementation']:<24}{times} {row['floor_percent']:5.0f} % of floor")
    write(f"{arguments.device}_multi_tensor", rows, ("timm", "lightly"))


if __name__ == "__main__":
    main()
