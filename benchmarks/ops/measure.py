"""What the benchmarks of the ops share: steps in turning order, memory, the rate of a product, one row per contender.

Milliseconds are p20, p50, p80 over rounds in which every contender runs once, in turning order; the first round is not
counted. Memory is the highest resident size during one step minus that before it, in a process of its own. The floor is
an op's arithmetic at the rate of torch's own large square fp32 product in the same run, which a kernel may beat.
"""

import argparse
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import merge

Sizes = tuple[int, ...]
Step = Callable[[], Tensor]  # one forward and backward; returns the gradient of the first input
Contenders = Callable[..., dict[str, Step]]  # by name, for the sizes of an op
Judge = Callable[[str, Tensor], str]  # the error of a contender's result, or "" where there is none to state


@dataclass(frozen=True)
class Table:
    """One op of a script: who takes part, and at which sizes."""

    contenders: Callable[..., dict[str, Callable[[], object]]]  # by name, for the sizes
    sizes: list[tuple[Any, ...]]  # arguments of `contenders`, those of the committed results
    small: tuple[Any, ...]  # seconds, not minutes: `--small` and `pytest benchmarks`
    more: Sizes = ()  # sizes that are the same for all: the end of the column

    def label(self, sizes: tuple[Any, ...]) -> str:
        return "x".join(map(str, (*sizes, *self.more)))


@dataclass(frozen=True, kw_only=True)
class Op(Table):
    """An op with a gradient: how results are judged, and the arithmetic that it cannot avoid."""

    contenders: Contenders
    judge: Callable[..., Judge]  # of the sizes
    flop: Callable[..., float]  # of the sizes
    times: int = 1  # rounds, of those asked for


def differentiate(loss: Callable[..., Tensor], first: Tensor, *others: Tensor) -> Step:
    """Forward and backward of copies; others of the first one's shape get gradients too."""

    def step() -> Tensor:
        x = first.clone().requires_grad_()
        rest = [other.clone().requires_grad_(other.shape == first.shape) for other in others]
        loss(x, *rest).backward()
        assert x.grad is not None
        return x.grad

    return step


def against(truth: Tensor) -> Judge:
    """Norm-wise error of a gradient."""
    return lambda name, found: f"{((found.double() - truth).norm() / truth.norm()).item():.1e}"


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every round but the first, by contender."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.perf_counter()
            steps[name]()
            if number:
                times[name].append((time.perf_counter() - begun) * 1e3)
            gc.collect()
    return times


def in_a_fresh_process(run: Callable[..., float], *args: Any) -> float:
    """`run(*args)` where no earlier step has left memory behind."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, run, args))
    process.start()
    sending.close()
    found: float = receiving.recv()
    process.join()
    return found


def _send(connection: Any, run: Callable[..., float], args: tuple[Any, ...]) -> None:
    connection.send(run(*args))


def added_mb(run: Callable[[], object]) -> float:
    """MB that a call adds to the resident size at its highest."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the high-water mark
    before = _resident("VmRSS")
    run()
    return (_resident("VmHWM") - before) / 1024


def _resident(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


def _memory(contenders: Contenders, sizes: Sizes, name: str, threads: int) -> float:
    torch.set_num_threads(threads)
    step = contenders(*sizes)[name]
    contenders(*(min(size, 64) for size in sizes))[name]()  # code and threads are there before the count begins
    return added_mb(step)


def matmul_rate() -> float:
    """FLOP/s of a 2048 x 2048 x 2048 fp32 product, the best of ten."""
    a = torch.randn(2048, 2048)
    best = min(_seconds(lambda: a @ a) for _ in range(10))
    return 2 * 2048**3 / best


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def measure(name: str, op: Op, sizes: Sizes, rounds: int, threads: int, error: str) -> list[dict[str, Any]]:
    """One row for each contender; `error` is the name of that column."""
    steps, judge = op.contenders(*sizes), op.judge(*sizes)
    times = interleaved(steps, rounds * op.times)
    floor = op.flop(*sizes) / matmul_rate() * 1e3
    rows = []
    for provider, values in times.items():
        cut = statistics.quantiles(values, n=5)
        row = {"op": name, "provider": provider, "sizes": op.label(sizes), "direction": "forward+backward"}
        row |= {"p20_ms": round(cut[0], 2), "p50_ms": round(statistics.median(values), 2), "p80_ms": round(cut[-1], 2)}
        memory = in_a_fresh_process(_memory, op.contenders, sizes, provider, threads)
        row |= {"extra_mb": round(memory, 1), error: judge(provider, steps[provider]())}
        row |= {"floor_ms": round(floor, 1), "threads": threads}
        print(row, flush=True)
        rows.append(row)
    return rows


def arguments(description: str, names: list[str], rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}, 2 at least")
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="OP", help=", ".join(names))
    parser.add_argument("--largest", action="store_true", help="the last size of each op alone")
    parser.add_argument("--small", action="store_true", help="small sizes, nothing written: does it run?")
    return parser


def run(
    description: str, file: str, ops: dict[str, Op], packages: tuple[str, ...], rounds: int = 9, error: str = "error"
) -> None:
    """The command line of a script. Rows are written as soon as an op's size is measured."""
    args = arguments(description, list(ops), rounds).parse_args()
    torch.set_num_threads(args.threads)
    for name in args.only:
        for sizes in [ops[name].small] if args.small else ops[name].sizes[-1:] if args.largest else ops[name].sizes:
            rows = measure(name, ops[name], sizes, args.rounds, args.threads, error)
            if not args.small:
                merge(file, rows, packages)
