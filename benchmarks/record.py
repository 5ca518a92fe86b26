"""Rows of measured numbers, each with the hardware, versions and commit that they were measured with."""

import csv
import datetime
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def environment(packages: Iterable[str] = ()) -> dict[str, str]:
    """Hardware, versions and commit of this process; the columns that every row ends with."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    names = ("torch", "triton", *packages)
    return {
        "hardware": device,
        "versions": " ".join(f"{name} {found}" for name in names if (found := _version(name))),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def read(name: str) -> list[dict[str, str]]:
    """The rows of benchmarks/results/<name>.csv; none where it is not there."""
    path = RESULTS / f"{name}.csv"
    with path.open(newline="") if path.exists() else nullcontext([]) as file:
        return list(csv.DictReader(file))


def write(name: str, rows: list[Mapping[str, Any]], packages: Iterable[str] = ()) -> Path:
    """Replaces benchmarks/results/<name>.csv by the rows, each with the columns of `environment`."""
    found = environment(packages)
    return _write(name, [{**row, **found} for row in rows])


def merge(
    name: str,
    rows: list[Mapping[str, Any]],
    packages: Iterable[str] = (),
    key: tuple[str, ...] = ("op", "sizes"),
) -> Path:
    """Puts the rows in the place of those with the same key, or at the end; all others stay as they are."""
    found, old = environment(packages), read(name)
    new = [{**row, **found} for row in rows]
    measured = {_key(row, key) for row in new}
    replaced = [row for row in old if _key(row, key) in measured]
    place = old.index(replaced[0]) if replaced else len(old)
    old = [row for row in old if row not in replaced]
    return _write(name, [*old[:place], *new, *old[place:]])


def _key(row: Mapping[str, Any], key: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(row.get(column)) for column in key)


def _write(name: str, rows: list[Mapping[str, Any]]) -> Path:
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(column for row in rows for column in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    vectors = next((f" ({name})" for name in ("avx512_bf16", "avx512f", "avx2") if name in flags), "")
    return f"{model}{vectors}, {sum(line.startswith('processor') for line in lines)} cores"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """Of this checkout; SSL_FAST_COMMIT says it where the files were copied without their history."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        found = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        found = ""
    return found or os.environ.get("SSL_FAST_COMMIT", "unknown")
