"""Writes README's tables of numbers and docs/benchmarks.md from benchmarks/results/*.csv.

python -m benchmarks.tables [--check]
"""

import argparse
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks.gpu import summary
from benchmarks.record import RESULTS, read

README = RESULTS.parents[1] / "README.md"
BOOK = RESULTS.parents[1] / "docs" / "benchmarks.md"
ENVIRONMENT = ("hardware", "versions", "commit", "date")  # said once under each table
Row = dict[str, str]


def grid(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def source(rows: list[Row], name: str) -> str:
    first, days = rows[0], sorted({row["date"] for row in rows})
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    return f"\n\n`benchmarks/results/{name}.csv`: {first['hardware']}; {first['versions']}; {when}."


def contrastive() -> str:
    """Forward and backward of the contrastive ops."""
    name = "ops_contrastive_cpu"
    rows = read(name)
    slowest = {(r["op"], r["sizes"]): max(float(o["p50_ms"]) for o in rows if o["sizes"] == r["sizes"]) for r in rows}
    lines = [
        [
            f"{r['op']} {r['sizes'].replace('x', ' x ')}",
            r["provider"],
            f"{float(r['p50_ms']):.1f}",
            f"{slowest[r['op'], r['sizes']] / float(r['p50_ms']):.1f}x",
            f"{float(r['extra_mb']):.0f}",
            r["gradient_error"],
            f"{float(r['floor_ms']) / float(r['p50_ms']):.1f}x",
        ]
        for r in rows
    ]
    header = ["samples x ... x D", "provider", "ms", "speed", "extra MB", "gradient error", "rate, of torch's matmul"]
    return grid(header, lines) + source(rows, name)


def steps() -> str:
    """LARS and EMA on ResNet-50."""
    name = "cpu_multi_tensor"
    rows = read(name)
    lines = [
        [r["op"], r["implementation"], f"{float(r['ms']):.1f}", f"{float(r['floor_percent']):.0f} %"] for r in rows
    ]
    return grid(["step", "provider", "ms", "of the byte floor"], lines) + source(rows, name)


def beside_lightly() -> str:
    """Training beside lightly: medians of images/s, means of kNN."""
    name = "train_beside_lightly"
    rows = read(name)
    columns: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        columns[row["column"]].append(row)
    base = statistics.median(float(r["images_per_second"]) for r in columns["lightly"])
    lines = []
    for column, mine in columns.items():
        rate = statistics.median(float(r["images_per_second"]) for r in mine)
        scores = [float(r["knn_top1"]) for r in mine]
        score = f"{statistics.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"
        lines.append([column, f"{rate:.0f}", f"{rate / base:.2f}x", score, mine[0]["setting"]])
    return grid(["column", "images/s", "speed", "kNN top-1, mean (range)", "setting"], lines) + source(rows, name)


def methods() -> str:
    """Every pretraining method beside lightly's: medians of images/s, means of kNN."""
    name = "train_methods"
    if not (rows := read(name)):
        return "Not measured yet: `python -m benchmarks.train.methods_beside_lightly --data cifar10.npz`."
    lines = []
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = {c: [r for r in rows if (r["method"], r["column"]) == (method, c)] for c in ("lightly", "ours")}
        if not all(mine.values()):
            continue
        rates = {c: statistics.median(float(r["images_per_second"]) for r in found) for c, found in mine.items()}
        scores = [statistics.mean(float(r["knn_top1"]) for r in mine[c]) for c in ("lightly", "ours")]
        cells = (f"{rates['lightly']:.0f}", f"{rates['ours']:.0f}", f"{rates['ours'] / rates['lightly']:.2f}x")
        lines.append([method, *cells, *(f"{score:.3f}" for score in scores), str(len(mine["ours"]))])
    header = ["method", "lightly, images/s", "ours", "speed", "lightly, kNN top-1", "ours", "seeds"]
    return grid(header, lines) + source(rows, name)


def views() -> str:
    """Views on a CPU: ours, how many times as many as each peer, and what a second thread brings of the control's."""
    name = "data_views_cpu"
    rows = read(name)
    rates = {(r["job"], r["threads"], r["provider"]): float(r["views_per_second"]) for r in rows}
    peers = [p for p in dict.fromkeys(r["provider"] for r in rows) if p not in ("ssl_fast", "control")]
    lines = []
    for job, threads in dict.fromkeys((r["job"], r["threads"]) for r in rows):
        ours = rates[job, threads, "ssl_fast"]
        times = [rates.get((job, threads, peer)) for peer in peers]
        gain, control = (rates[job, threads, who] / rates[job, "1", who] for who in ("ssl_fast", "control"))
        cells = [f"{ours / rate:.1f}x" if rate else "" for rate in times]
        lines.append([job, threads, f"{ours:.0f}", *cells, "" if threads == "1" else f"{gain / control:.2f}"])
    return grid(["job", "threads", "views/s", *peers, "of the control's scaling"], lines) + source(rows, name)


def pretrain() -> str:
    """The built-in job and CIFAR-10: one row a run."""
    name = "pretrain"
    rows = read(name)
    speeds = ("train_seconds", "images_per_second")
    keys = ("knn_top1", "knn_top1_random_init", "knn_top1_raw_pixels")
    lines = [
        [r["preset"], r["seed"], *(f"{float(r[k]):.3f}" for k in keys), *(f"{float(r[k]):.0f}" for k in speeds)]
        for r in rows
    ]
    header = ["preset", "seed", "kNN learned", "random init", "raw pixels", "training s", "images/s"]
    return grid(header, lines) + source(rows, name)


def gpu() -> str:
    """What was measured on a GPU, in short."""
    parts = []
    for name, (_, table) in summary.PARTS.items():
        header, lines = table()
        if lines:
            parts.append(grid(header, lines) + source(summary.newest(name), name))
    return "\n\n".join(parts) or "Nothing was measured yet."


def short(value: str) -> str:
    """A number to four digits; anything else as it is."""
    try:
        return value if value.isdigit() or "e" in value else f"{float(value):.4g}"
    except ValueError:
        return value


def book() -> str:
    """docs/benchmarks.md: every file of results as a table."""
    parts = [
        "# Benchmarks",
        "Made from `benchmarks/results/*.csv` by `python -m benchmarks.tables`; `make bench` measures the ops anew."
        "\nAn op at one size is one run (`pretrain`: one run a row): contenders take turns, times are percentiles over"
        "\nrounds. How each file was measured stands at the head of the script of its name in `benchmarks/`; what was"
        "\ntried and left is in [NOTES.md](../benchmarks/NOTES.md).",
    ]
    for path in sorted(RESULTS.glob("*.csv")):
        rows = summary.newest(path.stem) if path.stem in summary.PARTS else read(path.stem)
        shown = [column for column in rows[0] if column not in ENVIRONMENT]
        lines = [[short(row[column]) for column in shown] for row in rows]
        parts.append(f"## {path.stem.replace('_', ' ')}\n\n{grid(shown, lines)}{source(rows, path.stem)}")
    return "\n\n".join(parts) + "\n"


TABLES = {
    "contrastive": contrastive,
    "steps": steps,
    "beside_lightly": beside_lightly,
    "methods": methods,
    "views": views,
    "pretrain": pretrain,
    "gpu": gpu,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="README's tables of numbers and docs/benchmarks.md, from the results.")
    parser.add_argument("--check", action="store_true", help="fail if they are not what the results say")
    check = parser.parse_args().check
    old = Path(README).read_text()
    new = old
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        new = re.sub(pattern, lambda m, t=table: f"{m[1]}{t()}\n{m[2]}", new, flags=re.S)
    if not check:
        README.write_text(new)
        BOOK.write_text(book())
    elif new != old or not BOOK.exists() or BOOK.read_text() != book():
        sys.exit("README's tables or docs/benchmarks.md are not those of the results: run python -m benchmarks.tables")


if __name__ == "__main__":
    main()
