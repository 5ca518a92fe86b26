"""LARS and EMA on the parameters of a ResNet-50, beside torch's foreach forms, timm and lightly, interleaved.

    python -m benchmarks.ops.bench_multi_tensor --threads 2

On a CPU, or on a GPU with `--device cuda`. The floor is the bytes that must move, 12 per parameter for EMA and 28 for
LARS (p and g twice; where the cache keeps them between the passes the result may beat it), over the best bandwidth that
`lerp_` of one tensor as large as the model reaches in the same run. Percentages are of medians.
"""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.ops.measure import Table, arguments
from benchmarks.record import merge
from ssl_fast.ops.dispatch import backends
from ssl_fast.ops.multi_tensor import ema_update_
from ssl_fast.optim import LARS

BYTES = {"ema": 12, "ema bf16 student": 10, "lars": 28}
LR, MOMENTUM, WEIGHT_DECAY = 0.3, 0.9, 1e-6


def resnet(name: str = "resnet50") -> list[Tensor]:
    """The parameters of a ResNet (161 of ResNet-50), from whichever package is installed."""
    if importlib.util.find_spec("timm"):
        import timm

        model = timm.create_model(name)
    else:
        import torchvision

        model = getattr(torchvision.models, name)()
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


def steps(op: str, model: str, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """The contenders of one op on a model's parameters."""
    params, native = [p.to(device) for p in resnet(model)], "cuda" if device == "cuda" else "cpp"
    usable = [impl for impl in (native, "reference") if backends()["multi_tensor"][impl] == "available"]
    make = lars_contenders if op == "lars" else ema_contenders
    return {name: run for (kind, name), run in make(params, usable).items() if kind == op}


CONTENDERS = {op: Table(functools.partial(steps, op), [("resnet50",)], ("resnet18",)) for op in BYTES}
More = Callable[[str, str, str, str], dict[str, object]]  # of op, name, model and device: further columns


def run(
    description: str,
    file: str,
    tables: dict[str, Table],
    bytes_moved: dict[str, int],
    packages: tuple[str, ...],
    more: More | None = None,
) -> None:
    """The command line; one op at a time, for each contender holds a model. Rows are written as they come."""
    parser = arguments(description, list(tables), 30)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for op in args.only:
        (model,) = tables[op].small if args.small else tables[op].sizes[0]
        params = resnet(model)
        flat = torch.randn(2, sum(p.numel() for p in params), device=args.device)
        table: dict[tuple[str, str], Callable[[], object]] = {
            ("floor", "lerp_ of one tensor"): lambda flat=flat: flat[0].lerp_(flat[1], 0.004)
        }
        table |= {(op, name): step for name, step in tables[op].contenders(model, args.device).items()}
        rows = percent_of_floor(measure(table, args.rounds, args.device), bytes_moved)
        for row in rows:
            if more is not None:
                row |= more(str(row["op"]), str(row["implementation"]), model, args.device)
            row |= {"threads": args.threads, "parameters": flat.shape[1], "tensors": len(params)}
            print(row, flush=True)
        if not args.small:
            merge(f"{args.device}_{file}", rows, packages)


if __name__ == "__main__":
    run(__doc__, "multi_tensor", CONTENDERS, BYTES, ("timm", "lightly"))
