"""The book: every op with a GPU path, timed beside the plain equation, torch.compile of it, and its peers.

    python -m benchmarks.gpu.time_ops --seconds 300

Each row is one provider at one size, forward or forward and backward (`step`: one optimiser step), with the L2 cache as
a call of its own left it or emptied before; "graph": the same call, replayed as a CUDA graph. Milliseconds are p20,
p50, p80 of rounds in turning order, of the device alone where the host's part is done within its head start of 2 ms.
The floor is the larger of the op's arithmetic at the rate of a large product of torch's own in the same dtype, and of
the bytes it must move at the rate of a large copy, both of this run; "tf32" is float32 with torch told to multiply so
("high"), for all providers. `error` is norm-wise, against the equation in float64, where its matrix fits; `host_us` is
the host's time for one call at a tiny size; `extra_mb` is what one call adds to the allocated memory. A chapter's rows
join the CSV when it is done, the most important chapters first; those that are there already, of the same hardware and
versions, are left out. `--device cpu --small` runs the same code anywhere, for trying it out.
"""

import gc
import re
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import steps
from benchmarks.gpu.book import GRAPH, Book, Row, options, parsed, working
from benchmarks.gpu.clock import Clock, Step
from benchmarks.gpu.losses import MAKERS, Draw, Loss, Problem
from benchmarks.gpu.sizes import BF16, FULL, PRECISIONS, SIZES, TINY, multiplying

PACKAGES = ("lightly", "pytorch-metric-learning", "open-clip-torch", "timm")
JUDGED = 1 << 28  # cells of a float64 matrix that is still made


class Bench:
    """Takes the measurements of one chapter after the other."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rates: dict[str, float] = {}
        for precision, (dtype, _) in PRECISIONS.items():
            with multiplying(precision):
                self.rates[precision] = clock.flop_rate(dtype)
        self.byte_rate = clock.byte_rate()
        self.share = 0.05 if clock.small else 0.4  # seconds for the rounds of one table
        found = ", ".join(f"{rate / 1e12:.4g} {name}" for name, rate in self.rates.items())
        print(f"products: {found} TFLOP/s; copies: {self.byte_rate / 1e9:.4g} GB/s", flush=True)

    def measure(
        self, given: Row, ready: dict[str, Step], work: tuple[float, float, float], about: dict[str, Row]
    ) -> Iterator[Row]:
        """Rows of all providers in both states of the cache. Work: FLOP, their rate, bytes."""
        flop, rate, moved = work
        floor = max(flop / rate, moved / self.byte_rate) * 1e3
        by_flop = flop / rate > moved / self.byte_rate
        memory: dict[str, float | str] = {}
        for name, step in list(ready.items()):
            if name not in ready:
                continue
            taken = "" if GRAPH in name else working(f"{name}, again", partial(self.clock.extra_mb, step))
            if taken is None:  # the others' graphs keep their memory
                for variant in (name, name + GRAPH):
                    ready.pop(variant, None)
            else:
                memory[name] = taken
        for cold in (False, True):
            for name, times in self.clock.interleaved(ready, cold, self.share).items():
                cut, middle = statistics.quantiles(times, n=5), statistics.median(times)
                row = {**given, "provider": name, "cache": "cold" if cold else "hot", "p20_ms": round(cut[0], 4)}
                row |= {"p50_ms": round(middle, 4), "p80_ms": round(cut[-1], 4), "extra_mb": memory[name]}
                row |= {"rate": f"{(flop / 1e12 if by_flop else moved / 1e9) / middle * 1e3:.4g}"}
                row |= {"unit": "TFLOP/s" if by_flop else "GB/s", "floor_percent": round(100 * floor / middle, 1)}
                row |= {"product_tflop_s": f"{rate / 1e12:.4g}", "copy_gb_s": f"{self.byte_rate / 1e9:.4g}"}
                yield shown({**row, "error": "", "host_us": "", **about.get(name, {})})


def shown(row: Row) -> Row:
    keys = ("op", "provider", "sizes", "dtype", "direction", "cache", "p50_ms", "floor_percent", "extra_mb", "error")
    print("  ".join(str(row[key]) for key in keys), flush=True)
    return row


def contenders(problem: Problem, clock: Clock, compiled: bool) -> dict[str, Loss]:
    """Ours and the equation, compiled or beside the peers."""
    table = problem.implementations(clock.device)
    if compiled:
        backend = "eager" if clock.small else "inductor"
        return {**table, "compiled equation": torch.compile(problem.equation, dynamic=False, backend=backend)}
    table["equation"] = problem.equation
    for name, make in problem.peers.items():
        peer = working(f"{problem.kernel}, {name}", make)
        if peer is not None:
            table[name] = peer
    return table


def size_of(tensors: tuple[Tensor, ...]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors) ** 0.5


def time_loss(bench: Bench, op: str, sizes: tuple[int, ...], precision: str, compiled: bool) -> Iterator[Row]:
    """All providers of an op at one size, in both directions."""
    draw = Draw(bench.clock.device, PRECISIONS[precision][0])
    problem, tiny = MAKERS[op](draw, sizes), MAKERS[op](draw, TINY.get(op, (16, 16)))
    table = contenders(problem, bench.clock, compiled)
    small_table = {} if compiled else contenders(tiny, bench.clock, False)  # compiling it would only take time
    for with_grad in (False, True) if problem.differentiable else (False,):
        given = {"op": op, "provider": "", "sizes": "x".join(map(str, sizes)), "dtype": precision}
        given["direction"] = "forward+backward" if with_grad else "forward"
        small = {name: partial(tiny.run, loss, with_grad) for name, loss in small_table.items()}
        ready, about = judged(bench.clock, problem, table, with_grad, f"{op} {given['sizes']} {given['direction']}")
        for name, row in about.items():
            row["host_us"] = host_us(bench.clock, op, small.get(name))
        if ready:
            work = problem.flop[with_grad], bench.rates[precision], problem.bytes[with_grad]
            yield from bench.measure(given, ready, work, about)
        ready.clear()  # a graph keeps all the memory of its call


def judged(
    clock: Clock, problem: Problem, table: dict[str, Loss], with_grad: bool, what: str
) -> tuple[dict[str, Step], dict[str, Row]]:
    """The providers that work, warmed up; and their errors, where the equation in float64 can be made."""
    exact = partial(problem.run, problem.equation, with_grad, torch.float64)
    truth = working(f"{what}, float64", exact) if problem.cells <= JUDGED else None
    ready: dict[str, Step] = {}
    about: dict[str, Row] = {}
    for name, loss in table.items():
        ours = name.startswith("ssl_fast")
        graph = ours or (name.endswith("equation") and problem.cells <= JUDGED)
        for variant, step in with_graph(clock, name, partial(problem.run, loss, with_grad), what, graph):
            found = working(f"{what}, {variant}", lambda step=step: [step() for _ in range(3)][-1])
            if found is None:
                break
            ready[variant], about[variant] = step, {}
            if truth is not None:
                error = size_of(tuple(a.double() - b for a, b in zip(found, truth, strict=True))) / size_of(truth)
                about[variant]["error"] = f"{error:.1e}"
    return ready, about


def with_graph(
    clock: Clock, name: str, step: Callable[[], Any], what: str, graph: bool
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The step; and, once it has run, its replay as a graph, where one is wanted on a GPU."""
    yield name, step
    if clock.cuda and graph:
        replay = working(f"{what}, {name}{GRAPH}", lambda: clock.captured(step))
        if replay is not None:
            yield name + GRAPH, replay


def host_us(clock: Clock, op: str, step: Step | None) -> str:
    """Of a provider's call at a tiny size."""
    if step is None:
        return ""
    found = working(f"tiny {op}", lambda: (step(), clock.host_us(step))[1])
    return "" if found is None else f"{found:.0f}"


def time_step(bench: Bench, op: str, model: str) -> Iterator[Row]:
    """All providers of an optimiser step on a network's parameters."""
    clock = bench.clock
    params = steps.parameters(model, clock.device, clock.small)
    ready: dict[str, Step] = {}
    for name, once in steps.providers(op, params).items():
        for variant, step in with_graph(clock, name, once, op, name.startswith("ssl_fast")):
            if working(f"{op}, {variant}", lambda step=step: [step() for _ in range(3)]) is None:
                break
            ready[variant] = step
    count = sum(p.numel() for p in params)
    given = {"op": op, "provider": "", "sizes": f"{model}, {len(params)} tensors, {count}", "dtype": FULL}
    given["direction"] = "step"
    yield from bench.measure(given, ready, (0.0, bench.rates[FULL], float(steps.BYTES[op] * count)), {})


Chapter = tuple[str, Callable[[Bench], Iterator[Row]]]


def loss(op: str, sizes: tuple[int, ...], precision: str, compiled: bool = False) -> Chapter:
    def measure(bench: Bench) -> Iterator[Row]:
        with multiplying(precision):
            yield from time_loss(bench, op, sizes, precision, compiled)

    return " ".join([op, "x".join(map(str, sizes)), precision] + ["compiled"] * compiled), measure


def step(op: str, model: str) -> Chapter:
    return f"{op} {model}", lambda bench: time_step(bench, op, model)


def chapters(small: bool) -> Iterator[Chapter]:
    """What is measured, the most important first: headline sizes, compiled equations, steps, other sizes."""
    if small:
        for op, (_, precisions) in SIZES.items():
            yield loss(op, TINY.get(op, (32, 16)), FULL if FULL in precisions else precisions[0])
        yield loss("nt_xent", (32, 16), FULL, True)
        yield step("lars", "resnet50")
        yield step("sam sgd", "vit_base")
        return
    firsts = list(SIZES)[:4]  # what the floors are promised of
    yield from (loss(op, SIZES[op][0][0], BF16) for op in firsts)
    for model in steps.MODELS:
        yield from (step(op, model) for op in ("sam sgd", "lars", "ema"))
    yield from (loss(op, SIZES[op][0][0], BF16, True) for op in firsts)
    for op, (sizes, precisions) in SIZES.items():
        if op not in firsts:
            yield loss(op, sizes[0], precisions[0])
    for op, (sizes, precisions) in SIZES.items():
        yield from (loss(op, others, precisions[0]) for others in sizes[1:])
    yield from (step(op, "resnet50") for op in steps.OPS if op not in ("sam sgd", "lars", "ema"))
    for op, (sizes, precisions) in SIZES.items():
        yield from (loss(op, sizes[0], precision) for precision in precisions[1:])
        if op not in firsts:
            yield loss(op, sizes[0], precisions[0], True)


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "gpu_ops", 300)
    parser.add_argument("--only", default="", help="regular expression that a chapter's name begins with")
    args = parsed(parser, arguments)
    book = Book(args.output, PACKAGES, args.seconds, args.again)
    bench: Bench | None = None
    for name, measure in chapters(args.small):
        if not re.match(args.only, name) or not book.opens(name):
            continue
        bench = bench or Bench(Clock(args.device, args.small))
        rows = working(name, lambda measure=measure, bench=bench: list(measure(bench)))
        if rows:
            book.close(name, rows)
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
