"""What labels reach on the patches of `+preset=photo_patches`: the same network, images, crops and epochs, supervised.

    python -m benchmarks.train.supervised

Accuracy on the test patches, by cross-entropy from a random start. With `--runs FOLDER` the run folders stay: one that
is finished is only recorded.
"""

import argparse
import json
import subprocess
import sys
import tempfile

from benchmarks.record import write

VIEW = {"size": 24, "crop_scale": "[0.2,1.0]", "brightness": 0.1, "contrast": 0.1, "jitter": 0.8}
OPTIMIZER = {"lr": 0.12, "weight_decay": "5e-4", "warmup_epochs": 1}
SETTINGS = [
    "input=none",
    "data=photo_patches",
    "data.num_train=20000",
    *(f"method.view.{name}={value}" for name, value in VIEW.items()),
    *(f"method.optimizer.{name}={value}" for name, value in OPTIMIZER.items()),
    "backbone.cifar_stem=true",
    "backbone.width=16",
    'backbone.depth="1,1,1,1"',
    "size=32",
    "train.epochs=5",
    "train.batch_size=128",
    "train.monitor_every=5",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", default="", help="folder of the run folders; by default they are deleted")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            where = [f"runs={args.runs or folder}", f"run=s{seed}", f"train.seed={seed}"]
            command = [sys.executable, "recipes/finetune.py", *SETTINGS, *where]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            kept = {key: result[key] for key in ("top1", "train_top1", "train_seconds", "images_per_second", "steps")}
            rows.append({"data": "photo_patches", "seed": seed, **kept})
            write("train_supervised", rows)
            print(rows[-1])


if __name__ == "__main__":
    main()
