"""The book in short: what ours took, how far from the floor, and how many times faster than whom.

python -m benchmarks.gpu.summary
"""

from benchmarks.gpu.book import GRAPH, RUN, SAME
from benchmarks.record import read

Row = dict[str, str]
Table = tuple[list[str], list[list[str]]]  # header, lines
OPS = ["op", "sizes", "precision", "ours, ms", "graph, ms", "x floor", "extra MB", "equation", "compiled", "peers"]
TRAINING = ["job", "provider", "images/s", "of peak", "views", "loss", "optimizer"]
VIEWS = ["job", "provider", "views/s", "of ours"]
TILES = ["row of the table", "its tile, ms", "best tile", "ms"]
CURVE = ["method", "batch", "images", "epochs", "kNN top-1", "training, s", "0.80", "0.848", "0.90"]


def newest(name: str) -> list[Row]:
    """The rows of a CSV that were measured on the hardware and with the versions of its last one."""
    rows = read(name)
    return [row for row in rows if all(row[column] == rows[-1][column] for column in SAME)]


def ours(rows: list[Row]) -> list[Row]:
    """Our kernels; the form in plain torch where there are none."""
    mine = [r for r in rows if r["provider"].startswith("ssl_fast")]
    return [r for r in mine if "reference" not in r["provider"]] or mine


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
    for row in newest("gpu_ops"):
        if row["cache"] == "hot":
            groups.setdefault((row["op"], row["sizes"], row["dtype"]), []).append(row)
    lines = []
    for (op, sizes, dtype), rows in groups.items():
        whole = [r for r in rows if r["direction"] != "forward"] or rows
        mine = ours(whole)
        eager, graphs = ([r for r in mine if r["provider"].endswith(GRAPH) == kind] for kind in (False, True))
        if not eager:
            continue
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
    rows = newest("gpu_views")
    for row in rows:
        rates = [float(r["views_per_second"]) for r in rows if r["job"] == row["job"] and r["provider"] == "ssl_fast"]
        share = f"{float(row['views_per_second']) / rates[0]:.3f}" if rates else ""
        lines.append([row["job"], row["provider"], row["views_per_second"], share])
    return VIEWS, lines


def training() -> Table:
    """A line for each job and provider."""
    keys = ("images_per_second", "of_peak", "data_percent", "loss_percent", "optimizer_percent")
    return TRAINING, [[r["job"], r["provider"], *(r.get(k, "") for k in keys)] for r in newest("gpu_training")]


def curves() -> Table:
    """A line for each method: its last score, and the seconds of training at which each level was passed."""
    runs: dict[tuple[str, ...], list[Row]] = {}
    for row in newest("gpu_cifar10"):
        runs.setdefault(tuple(row[key] for key in RUN), []).append(row)
    lines = []
    for rows in runs.values():
        passed = (
            next((r["train_seconds"] for r in rows if float(r["knn_top1"]) >= level), "")
            for level in (0.80, 0.848, 0.90)
        )
        last = rows[-1]
        which = last["method"] + (", compiled" if last["compiled"] == "True" else "")
        how_far = f"{last['epoch']} of {last['epochs']}"
        score = last["knn_top1"], last["train_seconds"]
        lines.append([which, last["batch"], last["images"], how_far, *score, *passed])
    return CURVE, lines


def tiles() -> Table:
    """A line for each row of the table of tiles: what stands there, and the fastest."""
    rows = newest("gpu_tiles")
    lines = []
    for chapter in dict.fromkeys(r["chapter"] for r in rows):
        mine = [r for r in rows if r["chapter"] == chapter]
        table = next(r for r in mine if r["tile"] == "table")
        best = min(mine, key=milliseconds)
        lines.append([chapter, table["p50_ms"], best["tile"], best["p50_ms"]])
    return TILES, lines


PARTS = {  # by file of results: the part of run.sh, and its table
    "gpu_ops": ("ops", ops),
    "gpu_views": ("views", views),
    "gpu_training": ("train", training),
    "gpu_cifar10": ("cifar", curves),
    "gpu_tiles": ("tune", tiles),
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
