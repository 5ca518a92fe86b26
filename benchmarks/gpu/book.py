"""The CSV that a part of the book writes: it grows a chapter at a time, so that what ends the run early loses one."""

import argparse
import csv
import gc
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, environment

Row = dict[str, Any]
SAME = ("hardware", "versions")  # a chapter with these of today is not measured again
RUN = ("method", "epochs", "batch", "images", "compiled", "seed")  # what tells two trainings to the end apart
GRAPH = ", graph"  # ends the name of a provider whose call is replayed as a CUDA graph


class Book:
    """Rows of chapters, each of which is measured once on a kind of machine.

    Args:
        path: the CSV. What is in it stays: a run that was cut off goes on, on this machine or on another.
        packages: whose versions every row names, beside torch and Triton.
        seconds: no chapter is begun after them.
        again: measure chapters anew that are there already.
    """

    def __init__(self, path: Path, packages: Iterable[str], seconds: float, again: bool = False) -> None:
        self.path, self.end = path, time.monotonic() + seconds
        self.environment = environment(packages)
        self.rows: list[Row] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))
        self.done = set() if again else {row["chapter"] for row in self.rows if self._mine(row)}

    def opens(self, chapter: str) -> bool:
        """Whether to measure a chapter now; says why not."""
        late = time.monotonic() > self.end
        if late or chapter in self.done:
            print(f"{chapter}: left out, {'the time is over' if late else 'measured already'}", flush=True)
        return not late and chapter not in self.done

    def close(self, chapter: str, rows: list[Row]) -> None:
        """Writes a chapter's rows, in the place of its older ones from this machine's kind."""
        old = [row for row in self.rows if row["chapter"] != chapter or not self._mine(row)]
        self.rows = [*old, *({"chapter": chapter, **row, **self.environment} for row in rows)]
        self.done.add(chapter)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_suffix(".new")
        with whole.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(column for row in self.rows for column in row)))
            writer.writeheader()
            writer.writerows(self.rows)
        whole.replace(self.path)

    def _mine(self, row: Row) -> bool:
        return all(row[column] == self.environment[column] for column in SAME)


def working(what: str, step: Callable[[], Any]) -> Any:
    """What the step gives, or None and a line that says why not: a peer may be missing, a matrix too large."""
    try:
        return step()
    except Exception as error:  # whatever a peer raises, the other rows are wanted
        print(f"  {what}: left out ({type(error).__name__}: {str(error).splitlines()[:1]})", flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def options(description: str | None, name: str, seconds: float) -> argparse.ArgumentParser:
    """The command line that the parts have in common; `name` is that of their CSV."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true", help="tiny inputs and few rounds: to try the code out")
    parser.add_argument("--seconds", type=float, default=seconds, help="no new chapter is begun after them")
    parser.add_argument("--again", action="store_true", help="measure chapters anew that are in the CSV")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.csv")
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Its values; ends with code 2 where a GPU is asked for and there is none."""
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"{parser.prog}: no CUDA device is visible to torch", file=sys.stderr)
        raise SystemExit(2)
    return args
