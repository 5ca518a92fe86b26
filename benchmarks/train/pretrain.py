"""Runs a preset of recipes/pretrain.py with several seeds and keeps the results.

    python -m benchmarks.train.pretrain photo_patches --seeds 3
    python -m benchmarks.train.pretrain simclr_cifar10_small --seeds 1 data.path=cifar10.npz

With `--runs FOLDER` the run folders stay: a run that was interrupted goes on, one that is finished is only recorded.
Rows of other presets and seeds in benchmarks/results/pretrain.csv stay as they are.
"""

import argparse
import json
import subprocess
import sys
import tempfile

from benchmarks.record import merge

KEYS = (
    "knn_top1",
    "knn_top1_random_init",
    "knn_top1_raw_pixels",
    "train_seconds",
    "images_per_second",
    "steps",
    "loss",
)


def run(preset: str, seed: int, folder: str, overrides: list[str]) -> dict[str, object]:
    """result.json of one run; a failure ends the benchmark with the recipe's own words."""
    command = [sys.executable, "recipes/pretrain.py", f"+preset={preset}", f"train.seed={seed}", f"runs={folder}"]
    done = subprocess.run([*command, *overrides], stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    row = {"preset": preset, "seed": seed, **{key: result[key] for key in KEYS}}
    shown = (o for o in overrides if not o.startswith(("data.path=", "run=", "train.monitor_every=")))
    return {**row, "overrides": " ".join(shown)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", default="", help="folder of the run folders; by default they are deleted")
    parser.add_argument("overrides", nargs="*", help="settings of the recipe, key=value")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            row = run(args.preset, seed, args.runs or folder, args.overrides)
            merge("pretrain", [row], key=("preset", "seed"))


if __name__ == "__main__":
    main()
