"""SimCLR views on a CPU: ours beside lightly, torchvision, OpenCV, albumentations, kornia and DALI.

    python -m benchmarks.data.bench_views --cifar cifar10.npz

Two jobs from decoded pixels: 32-px views (no blur, strength 0.5) of CIFAR-10 arrays, and 224-px views of photographs of
375 x 500; and one from JPEG files of those to batches of two 224-px views. Every contender makes normalised fp32
tensors with the paper's random operations, as its own users run it: per image (lightly from PIL, torchvision from
uint8 tensors, OpenCV and albumentations from arrays) or per batch (ours, into tensors of the call before, as our loader
does; kornia; DALI). From files: our loader, lightly's and DALI's own pipeline. With two threads, what works per image
runs in two processes that send nothing back, which is more than a loader could do. `control` is arithmetic alone, to
show what two threads are worth here; our share of that gain is printed for each job. Contenders take turns; columns are
medians over rounds. The peers come with the extras `dev` (lightly), `peers` and `dali`; the first two are needed.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data.contenders import Contenders, contenders, save_jpegs
from benchmarks.record import merge

PACKAGES = ("torchvision", "lightly", "albumentations", "opencv-python-headless", "kornia", "nvidia-dali-cuda130")
_steps: dict[str, Callable[[], int]] = {}  # in a process of the pool: the contender that it runs


def photographs(num: int) -> list[np.ndarray]:
    """The colour photographs that scikit-image and scikit-learn carry, 375 x 500, turned into `num` by mirroring."""
    from PIL import Image

    from ssl_fast.data.datasets.photo_patches import PHOTOGRAPHS, _files

    grey = {"brick", "camera", "coins", "grass", "gravel", "moon"}
    files = [file for name, file in zip(PHOTOGRAPHS, _files(), strict=True) if name not in grey]
    pictures = [np.asarray(Image.open(file).convert("RGB").resize((500, 375))) for file in files]
    return [
        np.ascontiguousarray(pictures[i % len(pictures)][:, :: 1 - 2 * (i // len(pictures) % 2)]) for i in range(num)
    ]


def _start(make: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    _steps["step"] = make(*arguments)


def _run(_: int) -> int:
    return _steps["step"]()


class InProcesses:
    """The step of a contender that works on one thread, run by `num` processes at once."""

    def __init__(self, make: Any, arguments: tuple[Any, ...], num: int) -> None:
        self.num = num
        self.pool = ProcessPoolExecutor(num, get_context("forkserver"), _start, (make, arguments))

    def __call__(self) -> int:
        return sum(self.pool.map(_run, range(self.num)))


def measure(job: str, images: Any, threads: int, rounds: int, taking_part: Contenders) -> list[dict[str, Any]]:
    """Views/s of each contender of a job."""
    steps: dict[str, Callable[[], int]] = {}
    for name, (make, own_threads, _) in taking_part.items():
        if threads > 1 and not own_threads:
            steps[name] = InProcesses(make, (job, images, 1), threads)
        else:
            steps[name] = make(job, images, threads)
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):  # the first warms up
        for name, step in steps.items():
            torch.set_num_threads(threads if taking_part[name][1] else 1)
            begun = time.perf_counter()
            made = step()
            if turn:
                rates[name].append(made / (time.perf_counter() - begun))
    ours = statistics.median(rates["ssl_fast"])
    found = []
    for name, values in rates.items():
        middle = statistics.median(values)
        row = {"job": job, "provider": name, "threads": threads, "views_per_second": round(middle, 1)}
        row |= {"lowest": round(min(values), 1), "highest": round(max(values), 1)}
        row |= {"ours_is_faster_by": "" if name == "control" else round(ours / middle, 2)}
        print(row, flush=True)
        found.append(row)
    return found


def scaling(rows: list[dict[str, Any]], job: str) -> dict[int, float]:
    """Our gain from more threads as a share of the control's, by the number of threads."""
    rates = {(row["provider"], row["threads"]): row["views_per_second"] for row in rows if row["job"] == job}
    gains = {key: rate / rates[key[0], 1] for key, rate in rates.items() if (key[0], 1) in rates}
    more = sorted(threads for name, threads in gains if name == "control" and threads > 1)
    return {threads: round(gains["ssl_fast", threads] / gains["control", threads], 3) for threads in more}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", required=True, help=".npz with x_train")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", nargs="+", default=["32 px", "224 px", "JPEG to 224 px"])
    parser.add_argument("--trial", action="store_true", help="print only, write no results")
    args = parser.parse_args()
    with np.load(args.cifar) as file:
        small = file["x_train"][:512]
    photos = photographs(64)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        save_jpegs(photos, Path(folder))
        sources = {"32 px": small, "224 px": photos, "JPEG to 224 px": folder}
        for job in args.jobs:
            for threads in args.threads:
                rows += measure(job, sources[job], threads, args.rounds, contenders(job))
            print(f"{job}: share of the control's gain, by threads: {scaling(rows, job)}", flush=True)
            if not args.trial:
                merge("data_views_cpu", [row for row in rows if row["job"] == job], PACKAGES, key=("job",))


if __name__ == "__main__":
    main()
