"""The book: every op with a GPU path, timed beside the plain equation, torch.compile of it, and its peers.

    python -m benchmarks.gpu.time_ops --seconds 300

Each row is one provider at one size, forward or forward and backward (`step`: one optimiser step), with the L2 cache as
the last call left it or emptied before. Milliseconds are p20, p50, p80 of rounds in turning order. The floor is the
larger of the op's arithmetic at the rate of a large product of torch's own in the same dtype, and of the bytes it must
move at the rate of a large copy, both of this run. `error` is norm-wise, against the equation in float64, where its
matrix fits; `host_us` is the host's time for one call at a tiny size; `extra_mb` is what one call adds to the allocated
memory. Rows are appended to the CSV as they come, the most important first: what ends the run early loses the rest.
`--device cpu --small` runs the same code anywhere, for trying it out.
"""

import argparse
import csv
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import steps
from benchmarks.gpu.clock import Clock, Step
from benchmarks.gpu.losses import MAKERS, Draw, Loss, Problem
from benchmarks.record import RESULTS, environment

Row = dict[str, Any]
FULL, HALF = torch.float32, torch.bfloat16
# By op: the headline size first, then the others; dtypes of the headline, of which the others take the first.
SIZES: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[torch.dtype, ...]]] = {
    "nt_xent": (((8192, 128), (4096, 128), (1024, 128), (32768, 128), (65536, 128), (65536, 256)), (HALF, FULL)),
    "info_nce": (((256, 65536, 128), (512, 65536, 128), (1024, 65536, 128), (4096, 65536, 128)), (HALF, FULL)),
    "arcface": (
        ((1024, 100_000, 512), (512, 10_000, 512), (4096, 100_000, 512), (1024, 1_000_000, 512)),
        (HALF, FULL),
    ),
    "siglip_loss": (((8192, 768), (65536, 768)), (HALF,)),
    "clip_loss": (((8192, 768), (32768, 768)), (HALF,)),
    "dino_loss": (((512, 65536, 256),), (HALF,)),
    "sinkhorn": (((1024, 65536), (4096, 3000)), (FULL, HALF)),
    "supcon": (((8192, 128),), (HALF,)),
    "dcl": (((8192, 128),), (HALF,)),
    "byol_loss": (((4096, 256), (512, 2048)), (FULL, HALF)),
    "knn_topk": (((4096, 65536, 512, 200), (4096, 65536, 512, 20)), (FULL,)),
    "curricularface": (((1024, 100_000, 512),), (HALF,)),
    "koleo": (((4096, 384),), (FULL,)),
    "vicreg": (((2048, 8192), (256, 8192), (1024, 8192), (4096, 8192)), (FULL,)),
    "barlow_twins": (((2048, 8192), (256, 8192), (1024, 8192), (4096, 8192)), (FULL,)),
}
TINY = {
    "info_nce": (16, 64, 16), "arcface": (16, 64, 16), "dino_loss": (8, 64, 16), "knn_topk": (16, 64, 16, 5),
    "curricularface": (16, 64, 16),
}  # fmt: skip
JUDGED = 1 << 28  # cells of a float64 matrix that is still made


class Book:
    """Takes the measurements, and appends their rows to a CSV."""

    def __init__(self, clock: Clock, output: Path, seconds: float) -> None:
        self.clock, self.output, self.end = clock, output, time.monotonic() + seconds
        self.environment = environment(("lightly", "pytorch-metric-learning", "open-clip-torch", "timm"))
        self.rates = {dtype: clock.flop_rate(dtype) for dtype in (FULL, HALF)}
        self.byte_rate = clock.byte_rate()
        self.share = 0.05 if clock.small else 0.4  # seconds for the rounds of one table
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)

    def over(self) -> bool:
        return time.monotonic() > self.end

    def append(self, row: Row) -> None:
        """Prints a row and writes it, so that it is there whatever happens next."""
        row |= self.environment
        fresh = not self.output.exists()
        with self.output.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        shown = ("op", "provider", "sizes", "dtype", "direction", "cache", "p50_ms", "floor_percent", "extra_mb")
        print("  ".join(str(row[key]) for key in shown), row["error"], flush=True)

    def measure(
        self, given: Row, ready: dict[str, Step], work: tuple[float, float, float], about: dict[str, Row]
    ) -> None:
        """Rows of all providers in both states of the cache. Work: FLOP, their rate, bytes."""
        flop, rate, moved = work
        floor = max(flop / rate, moved / self.byte_rate) * 1e3
        by_flop = flop / rate > moved / self.byte_rate
        memory = {name: self.clock.extra_mb(step) for name, step in ready.items()}
        for cold in (False, True):
            for name, times in self.clock.interleaved(ready, cold, self.share).items():
                cut, middle = statistics.quantiles(times, n=5), statistics.median(times)
                row = {**given, "provider": name, "cache": "cold" if cold else "hot", "p20_ms": round(cut[0], 4)}
                row |= {"p50_ms": round(middle, 4), "p80_ms": round(cut[-1], 4), "extra_mb": memory[name]}
                row |= {"rate": f"{(flop / 1e12 if by_flop else moved / 1e9) / middle * 1e3:.4g}"}
                row |= {"unit": "TFLOP/s" if by_flop else "GB/s", "floor_percent": round(100 * floor / middle, 1)}
                self.append({**row, "error": "", "host_us": "", **about.get(name, {})})


def working(name: str, what: str, step: Callable[[], Any]) -> Any:
    """What the step gives, or None and a line that says why not: a peer may be missing, a matrix too large."""
    try:
        return step()
    except Exception as error:  # whatever a peer raises, the other rows are wanted
        print(f"  {what}, {name}: left out ({type(error).__name__}: {str(error).splitlines()[:1]})", flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def contenders(problem: Problem, clock: Clock, compiled: bool) -> dict[str, Loss]:
    """Ours and the equation, compiled or beside the peers."""
    table = problem.implementations(clock.device)
    if compiled:
        backend = "eager" if clock.small else "inductor"
        return {**table, "compiled equation": torch.compile(problem.equation, dynamic=False, backend=backend)}
    table["equation"] = problem.equation
    for name, make in problem.peers.items():
        peer = working(name, problem.kernel, make)
        if peer is not None:
            table[name] = peer
    return table


def size_of(tensors: tuple[Tensor, ...]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors) ** 0.5


def time_loss(book: Book, op: str, sizes: tuple[int, ...], dtype: torch.dtype, compiled: bool) -> None:
    """All providers of an op at one size, in both directions."""
    draw = Draw(book.clock.device, dtype)
    problem, tiny = MAKERS[op](draw, sizes), MAKERS[op](draw, TINY.get(op, (16, 16)))
    tables = [contenders(p, book.clock, compiled) for p in (problem, tiny)]
    for with_grad in (False, True) if problem.differentiable else (False,):
        given = {"op": op, "provider": "", "sizes": "x".join(map(str, sizes)), "dtype": str(dtype)[6:]}
        given["direction"] = "forward+backward" if with_grad else "forward"
        small = {name: partial(tiny.run, loss, with_grad) for name, loss in tables[1].items()}
        ready, about = judged(problem, tables[0], with_grad, f"{op} {given['sizes']} {given['direction']}")
        for name, row in about.items():
            row["host_us"] = host_us(book.clock, op, small.get(name))
        if ready:
            work = problem.flop[with_grad], book.rates[dtype], problem.bytes[with_grad]
            book.measure(given, ready, work, about)


def judged(
    problem: Problem, table: dict[str, Loss], with_grad: bool, what: str
) -> tuple[dict[str, Step], dict[str, Row]]:
    """The providers that work, warmed up; and their errors, where the equation in float64 can be made."""
    exact = partial(problem.run, problem.equation, with_grad, torch.float64)
    truth = working("float64", what, exact) if problem.cells <= JUDGED else None
    ready: dict[str, Step] = {}
    about: dict[str, Row] = {}
    for name, loss in table.items():
        step = partial(problem.run, loss, with_grad)
        found = working(name, what, lambda step=step: [step() for _ in range(3)][-1])
        if found is None:
            continue
        ready[name], about[name] = step, {}
        if truth is not None:
            error = size_of(tuple(a.double() - b for a, b in zip(found, truth, strict=True))) / size_of(truth)
            about[name]["error"] = f"{error:.1e}"
    return ready, about


def host_us(clock: Clock, op: str, step: Step | None) -> str:
    """Of a provider's call at a tiny size."""
    if step is None:
        return ""
    found = working("tiny", op, lambda: (step(), clock.host_us(step))[1])
    return "" if found is None else f"{found:.0f}"


def time_step(book: Book, op: str) -> None:
    """All providers of an optimiser step."""
    params = steps.parameters(book.clock.device, book.clock.small)
    ready = {}
    for name, step in steps.providers(op, params).items():
        if working(name, op, lambda step=step: [step() for _ in range(3)]) is not None:
            ready[name] = step
    count = sum(p.numel() for p in params)
    given = {"op": op, "provider": "", "sizes": f"{len(params)} tensors, {count}", "dtype": "float32"}
    given["direction"] = "step"
    book.measure(given, ready, (0.0, book.rates[FULL], float(steps.BYTES[op] * count)), {})


def chapters(small: bool) -> Iterator[tuple[str, Callable[[Book], None]]]:
    """What is measured, the most important first: headline sizes, steps, other sizes, compiled equations."""

    def loss(op: str, sizes: tuple[int, ...], dtype: torch.dtype, compiled: bool = False) -> Callable[[Book], None]:
        return lambda book: time_loss(book, op, sizes, dtype, compiled)

    if small:
        for op, (_, dtypes) in SIZES.items():
            yield op, loss(op, TINY.get(op, (32, 16)), dtypes[-1])
        yield "compiled nt_xent", loss("nt_xent", (32, 16), FULL, True)
        yield "lars", lambda book: time_step(book, "lars")
        yield "sam sgd", lambda book: time_step(book, "sam sgd")
        return
    for op, (sizes, dtypes) in SIZES.items():
        yield op, loss(op, sizes[0], dtypes[0])
    for op in steps.OPS:
        yield op, lambda book, op=op: time_step(book, op)  # type: ignore[misc]
    for op, (sizes, dtypes) in SIZES.items():
        yield f"compiled {op}", loss(op, sizes[0], dtypes[0], True)
    for op, (sizes, dtypes) in SIZES.items():
        for dtype in dtypes[1:]:
            yield op, loss(op, sizes[0], dtype)
        for others in sizes[1:]:
            yield op, loss(op, others, dtypes[0])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true", help="tiny inputs and two rounds: to try the code out")
    parser.add_argument("--seconds", type=float, default=300, help="no new size is begun after them")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu_ops.csv")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu/time_ops.py: no CUDA device is visible to torch", file=sys.stderr)
        raise SystemExit(2)
    book = Book(Clock(args.device, args.small), args.output, args.seconds)
    for name, chapter in chapters(args.small):
        if book.over():
            print(f"{name}: left out, the time is over", flush=True)
            continue
        working(name, "chapter", lambda chapter=chapter: chapter(book))
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
