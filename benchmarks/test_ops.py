"""The contenders of every script in benchmarks/ops under pytest-benchmark: peers side by side, one group a size.

    pytest benchmarks                            small sizes, a few minutes
    pytest benchmarks -k "nt_xent and 512"       one op at one size
    pytest benchmarks --full --benchmark-json=found.json

One step is forward and backward (a search, or an optimiser's step) on `OMP_NUM_THREADS` threads. Contenders run one
after the other here; memory, errors and floors, and contenders in turning order, are the scripts' own.
"""

import functools
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ops.measure import Table

SCRIPTS = sorted(file.stem for file in (Path(__file__).parent / "ops").glob("bench_*.py"))


@functools.lru_cache(maxsize=1)  # the contenders of one size follow one another, and hold their inputs
def steps(script: str, op: str, sizes: tuple[Any, ...]) -> dict[str, Callable[[], object]]:
    return tables(script)[op].contenders(*sizes)


def tables(script: str) -> dict[str, Table]:
    return import_module(f"benchmarks.ops.{script}").CONTENDERS  # type: ignore[no-any-return]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full, cases = metafunc.config.getoption("--full", default=False), []
    # Of an op that two scripts have, the contenders of the first.
    tables_of = {op: (script, table) for script in reversed(SCRIPTS) for op, table in tables(script).items()}
    for op, (script, table) in tables_of.items():
        try:
            names = list(steps(script, op, table.small))
        except ImportError as error:
            skip = pytest.mark.skip(reason=f"a peer of {op} is not installed ({error})")
            cases.append(pytest.param(script, op, table.small, "", id=op, marks=skip))
            continue
        for sizes in table.sizes if full else [table.small]:
            ids = [f"{op} {table.label(sizes)} {name}" for name in names]
            cases += [pytest.param(script, op, sizes, n, id=i) for n, i in zip(names, ids, strict=True)]
    metafunc.parametrize(("script", "op", "sizes", "provider"), cases)


def test_step(benchmark: Any, script: str, op: str, sizes: tuple[Any, ...], provider: str) -> None:
    benchmark.group = f"{op} {tables(script)[op].label(sizes)}"
    benchmark.name = provider
    benchmark(steps(script, op, sizes)[provider])
