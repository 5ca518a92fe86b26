"""The book in short: what ours took, how far from the floor, and how many times faster than whom.

python -m benchmarks.gpu.summary
"""

from collections.abc import Iterable

from benchmarks.record import read

Row = dict[str, str]
Table = tuple[list[str], list[list[str]]]  # header, lines
OPS = ["op", "sizes", "precision", "ours, ms", "graph, ms", "x floor", "extra MB", "equation", "compiled", "peers"]
TRAINING = ["job", "provider", "images/s", "of peak", "views", "loss", "optimizer"]
VIEWS = ["job", "provider", "views/s", "of ours"]
GRAPH = ", graph"
CURVE = ["method", "epochs", "kNN top-1", "training, s", "0.80", "0.848", "0.90"]


def ours(rows: Iterable[Row]) -> list[Row]:
    """Our kernels, without the fallback in plain torch."""
    return [r for r in rows if r["provider"].startswith("ssl_fast") and "reference" not in r["provider"]]


def times(chosen: list[Row], best: float) -> str:
    """How many times as long as ours the fastest of them takes."""
    return f"{min(map(milliseconds, chosen)) / best:.1f}x" if chosen else ""


def milliseconds(row: Row) -> float:
    """The median."""
    return float(row["p50_ms"])


def ops() -> Table:
    """A line for each op, size and precision: forward and backward where there is one, hot, the fastest of ours.

    Eager calls are compared with eager calls; "x floor" is the faster one's, graph or not.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in read("gpu_ops"):
        if row["cache"] == "hot":
            groups.setdefault((row["hardware"], row["op"], row["sizes"], row["dtype"]), []).append(row)
    lines = []
    for (_, op, sizes, dtype), rows in groups.items():
        whole = [r for r in rows if r["direction"] != "forward"] or rows
        mine = ours(whole)
        if not mine:
            continue
        eager, graphs = ([r for r in mine if r["provider"].endswith(GRAPH) == kind] for kind in (False, True))
        fastest, best = min(mine, key=milliseconds), min(map(milliseconds, eager))
        graph = f"{min(map(milliseconds, graphs)):.3f}" if graphs else ""
        plain = [[r for r in whole if r["provider"] == kind] for kind in ("equation", "compiled equation")]
        peers = [r for r in whole if not r["provider"].startswith(("equation", "compiled", "ssl_fast"))]
        memory = next((r["extra_mb"] for r in eager if r["extra_mb"]), "")
        speed = (times(chosen, best) for chosen in (*plain, peers))
        percent = float(fastest["floor_percent"])
        of_floor = f"{100 / percent:.1f}" if percent else ""
        lines.append([op, sizes, dtype, f"{best:.3f}", graph, of_floor, memory, *speed])
    return OPS, lines


def views() -> Table:
    """A line for each job and provider."""
    lines = []
    rows = read("gpu_views")
    for row in rows:
        rates = [float(r["views_per_second"]) for r in rows if r["job"] == row["job"] and r["provider"] == "ssl_fast"]
        share = f"{float(row['views_per_second']) / rates[0]:.3f}" if rates else ""
        lines.append([row["job"], row["provider"], row["views_per_second"], share])
    return VIEWS, lines


def training() -> Table:
    """A line for each job and provider."""
    keys = ("images_per_second", "of_peak", "data_percent", "loss_percent", "optimizer_percent")
    return TRAINING, [[r["job"], r["provider"], *(r.get(k, "") for k in keys)] for r in read("gpu_training")]


def curves() -> Table:
    """A line for each method: its last score, and the seconds of training at which each level was passed."""
    runs: dict[tuple[str, ...], list[Row]] = {}
    for row in read("gpu_cifar10"):
        runs.setdefault((row["hardware"], row["method"], row["epochs"], row["seed"]), []).append(row)
    lines = []
    for (_, method, epochs, _), rows in runs.items():
        passed = [
            next((r["train_seconds"] for r in rows if float(r["knn_top1"]) >= level), "")
            for level in (0.80, 0.848, 0.90)
        ]
        last = rows[-1]
        lines.append([method, f"{last['epoch']} of {epochs}", last["knn_top1"], last["train_seconds"], *passed])
    return CURVE, lines


PARTS = {  # by file of results: the part of run.sh, and its table
    "gpu_ops": ("ops", ops),
    "gpu_views": ("views", views),
    "gpu_training": ("train", training),
    "gpu_cifar10": ("cifar", curves),
}


def main() -> None:
    for part, table in PARTS.values():
        header, lines = table()
        if lines:
            widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]
            print(f"-- {part}")
            print(*("  ".join(map(str.ljust, line, widths)).rstrip() for line in (header, *lines)), sep="\n")


if __name__ == "__main__":
    main()
