"""Which tile of ssl_fast/ops/triton/tile_table.py is the fastest on this GPU: every candidate of one row, interleaved.

    python -m benchmarks.gpu.tune_tiles --seconds 200 --only "backward one 128"

A chapter is a row of the table, timed by the op that launches it. Candidates are compiled by several processes first;
those that need more registers or shared memory than there is are left out. `error` is norm-wise, from the tile in the
table. The table is not changed: put the best one in, and let tests/ops/triton/test_compile.py look for spills.
In the interpreter (TRITON_INTERPRET=1, `--device cpu --small`) the same code runs anywhere, for trying it out.
"""

import argparse
import contextlib
import itertools
import os
import re
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor

from benchmarks.gpu.book import Book, Row, options, parsed, working
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.losses import MAKERS, Draw
from ssl_fast.ops.triton import tiles
from ssl_fast.ops.triton.tiles import Tile

Target = tuple[str, str, int]  # a row of the table: kernel, planes, width
# What launches it: the op, its sizes, whether with gradients.
TARGETS: dict[Target, tuple[str, tuple[int, ...], bool]] = {
    ("backward", "one", 128): ("nt_xent", (8192, 128), True),
    ("triangle", "one", 128): ("nt_xent", (8192, 128), False),
    ("queue", "one", 128): ("info_nce", (1024, 65536, 128), True),
    ("class_backward", "one", 128): ("supcon", (8192, 128), True),
    ("backward", "one", 256): ("nt_xent", (8192, 256), True),
    ("triangle", "one", 256): ("nt_xent", (8192, 256), False),
    ("backward", "several", 128): ("nt_xent", (8192, 128), True),
    ("triangle", "several", 128): ("nt_xent", (8192, 128), False),
}
SMALL = {("queue", "several", 64): ("info_nce", (16, 100, 16), True)}
CANDIDATES = [Tile(*each) for each in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))]


@contextlib.contextmanager
def using(target: Target, tile: Tile | None) -> Iterator[None]:
    """The kernels take `tile` for a row of the table; None: what the table says."""
    original = tiles.tile

    def chosen(kernel: str, num_planes: int, dim: int, device: torch.device) -> Tile:
        mine = kernel == target[0] and (num_planes == 1) == (target[1] == "one")
        return tile if mine and tile is not None else original(kernel, num_planes, dim, device)

    tiles.tile = chosen
    try:
        yield
    finally:
        tiles.tile = original


def call(target: Target, device: str) -> Callable[[], tuple[Tensor, ...]]:
    """The op that launches the row's kernel."""
    op, sizes, with_grad = {**TARGETS, **SMALL}[target]
    problem = MAKERS[op](Draw(device, torch.bfloat16 if target[1] == "one" else torch.float32), sizes)
    return partial(problem.run, partial(problem.ours, impl="triton"), with_grad)


def with_tile(target: Target, tile: Tile | None, run: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    with using(target, tile):
        return run()


def compile_only(target: Target, tile: Tile, device: str) -> None:
    """In a process of its own: leaves the kernel in Triton's cache. What fails here fails again where it is said."""
    with contextlib.suppress(Exception):
        with_tile(target, tile, call(target, device))


def compile_ahead(targets: list[Target], candidates: list[Tile], args: argparse.Namespace) -> None:
    """All kernels at once, in several processes; one that dies (a compiler's abort) ends this, not the timing."""
    pairs = list(itertools.product(targets, candidates))
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        list(pool.map(compile_only, *zip(*pairs, strict=True), itertools.repeat(args.device)))


def tune(target: Target, candidates: list[Tile], clock: Clock) -> list[Row]:
    """A row for each candidate that works, the fastest first; the tile of the table is named."""
    run = call(target, clock.device)
    exact = with_tile(target, None, run)
    steps: dict[str, Callable[[], object]] = {"table": partial(with_tile, target, None, run)}
    errors = {"table": 0.0}
    for tile in candidates:
        name = "x".join(map(str, astuple(tile)))
        found = working(name, partial(with_tile, target, tile, run))
        if found is not None:
            errors[name] = max(
                float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(found, exact, strict=True)
            )
            steps[name] = partial(with_tile, target, tile, run)
    times = clock.interleaved(steps, False, 0.05 * len(steps))
    rows = [
        {"tile": name, "p50_ms": round(statistics.median(taken), 4), "error": f"{errors[name]:.1e}"}
        for name, taken in times.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row["p50_ms"])


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "gpu_tiles", 200)
    parser.add_argument("--only", default="", help="regular expression that a row's name begins with")
    parser.add_argument("--processes", type=int, default=min(12, os.cpu_count() or 1), help="that compile")
    args = parsed(parser, arguments)
    book, clock = Book(args.output, (), args.seconds, args.again), Clock(args.device, args.small)
    candidates = CANDIDATES[:2] if args.small else CANDIDATES
    chosen = {" ".join(map(str, t)): t for t in (SMALL if args.small else TARGETS)}
    chosen = {name: target for name, target in chosen.items() if re.match(args.only, name) and book.opens(name)}
    if chosen and not args.small:
        working("compiling ahead", partial(compile_ahead, list(chosen.values()), candidates, args))
    for name, target in chosen.items():
        if not book.opens(name):
            continue
        rows = working(name, partial(tune, target, candidates, clock))
        if rows:
            print(*(f"{name} {row}" for row in rows[:5]), sep="\n", flush=True)
            book.close(name, rows)


if __name__ == "__main__":
    main()
