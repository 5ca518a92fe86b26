"""Runs an image-text preset of recipes/pretrain.py, then recipes/zero_shot.py, and keeps the results.

    python -m benchmarks.train.zero_shot clip_cifar10_small data.path=cifar10.npz
    python -m benchmarks.train.zero_shot clip_pairs_small --evaluate all data.path=imagenet-names/pairs.jsonl

With `--runs FOLDER` the run folders stay: a run that was interrupted goes on, one that is finished is only recorded.
Rows of other presets in benchmarks/results/zero_shot.csv stay as they are.
"""

import argparse
import json
import subprocess
import sys
import tempfile

from benchmarks.record import merge


def recipe(name: str, *settings: str) -> dict[str, object]:
    """result.json of one recipe; a failure ends the benchmark with the recipe's own words."""
    command = [sys.executable, f"recipes/{name}.py", *settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(preset: str, evaluate: str, seed: int, folder: str, overrides: list[str]) -> dict[str, object]:
    place = [f"runs={folder}", f"run={preset}-{seed}"]
    trained = recipe("pretrain", f"+preset={preset}", f"train.seed={seed}", *place, *overrides)
    scored = recipe("zero_shot", f"evaluate={evaluate}", *place)
    retrieval: dict[str, dict[str, float]] = scored.get("retrieval", {})  # type: ignore[assignment]
    recalls = {f"{way}_recall1": found["recall@1"] for way, found in retrieval.items() if way != "protocol"}
    both = {way: recalls.get(way, "") for way in ("image_to_text_recall1", "text_to_image_recall1")}
    figures = {key: trained[key] for key in ("knn_top1", "train_seconds", "images_per_second", "steps", "loss")}
    shown = " ".join(o for o in overrides if not o.startswith("data.path="))
    row = {"preset": preset, "seed": seed, "split": evaluate, "zero_shot_top1": scored.get("top1", ""), **both}
    return {**row, **figures, "overrides": shown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--evaluate", default="test", help="the split that is scored")
    parser.add_argument("--runs", default="", help="folder of the run folders; by default they are deleted")
    parser.add_argument("overrides", nargs="*", help="settings of recipes/pretrain.py, key=value")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            row = run(args.preset, args.evaluate, seed, args.runs or folder, args.overrides)
            merge("zero_shot", [row], key=("preset", "seed", "split"))


if __name__ == "__main__":
    main()
