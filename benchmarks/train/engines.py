"""Does training with the fused engine learn what it learns with torchvision's? kNN of both, seed by seed.

    python -m benchmarks.train.engines data.path=cifar10.npz

SimCLR's small preset on 10,000 CIFAR-10 images, four epochs; further settings of the recipe go to both. With
`--runs FOLDER` the run folders stay: a run that was interrupted goes on, one that is finished is only recorded.
"""

import argparse
import statistics
import tempfile

from benchmarks.record import write
from benchmarks.train.pretrain import run

SETTINGS = ("data.limit=10000", "train.epochs=4", "train.monitor_every=100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", default="", help="folder of the run folders; by default they are deleted")
    parser.add_argument("overrides", nargs="*", help="settings of the recipe, key=value")
    args = parser.parse_intermixed_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for engine in ("torchvision", "fused"):
                settings = [*SETTINGS, *args.overrides, f"data.engine={engine}", f"run={engine}-{seed}"]
                row = run("simclr_cifar10_small", seed, args.runs or folder, settings)
                rows.append({"engine": engine, **row})
                write("train_engines", rows)
    for engine in ("torchvision", "fused"):
        scores = [float(row["knn_top1"]) for row in rows if row["engine"] == engine]
        print(f"{engine:12s} kNN {statistics.mean(scores):.4f} ({min(scores):.4f} to {max(scores):.4f})")


if __name__ == "__main__":
    main()
