"""Each pretraining method beside the same of lightly's components: images/s and kNN, interleaved in one run.

    python -m benchmarks.train.methods_beside_lightly --data cifar10.npz --only simsiam --seeds 1

`lightly`: its transform, networks and loss as in its examples, torch's DataLoader at its best of 0, 1, 2 workers and 1,
2 threads, fp32. `ours`: the trainer with its defaults (fused engine, bf16 where the CPU has it, stacked views). The
same images, backbone, head sizes, batch, epochs, optimiser and schedule, SimCLR's views of small pictures (two-view
methods) or 2 + 4 crops. The backbone is the presets' small one; `--full` takes ResNet-18. lightly has no loss for MoCo
v3, and SupCon needs labels, which its loader does not bring. Rows join benchmarks/results/train_methods.csv as they
come; those of the same method, column and seed are replaced.
Needs `pip install lightly==1.6.0`.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from benchmarks.record import merge
from benchmarks.train.beside_lightly import (
    DIM,
    HIDDEN,
    TEMPERATURE,
    VIEW,
    backbone,
    best_setting,
    knn,
    sgd,
    train_lightly,
    train_ours,
)
from benchmarks.train.lightly_methods import LOCAL_SIZE, LOCALS, MOMENTUM, PEERS, PROTOTYPES, QUEUE, WIDE, Peer
from ssl_fast.config import classes_in, find
from ssl_fast.data.datasets.arrays import Arrays
from ssl_fast.methods.base import Method

METHODS = "ssl_fast.methods.pretrain"
SMALL = {"width": 16, "depth": "1,1,1,1"}
HEADS = {"hidden_dim": HIDDEN, "dim": DIM}
CROPS = {"num_local": LOCALS, "local_size": LOCAL_SIZE}
OURS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"hidden_dim": WIDE, "dim": WIDE, "bias_lr_scale": 1.0},
    "byol": {**HEADS, "momentum": MOMENTUM},
    "dino": {
        **CROPS,
        "hidden_dim": HIDDEN,
        "bottleneck_dim": DIM,
        "num_prototypes": PROTOTYPES,
        "momentum": MOMENTUM,
        "teacher_temperature": 0.04,
        "freeze_last_layer": 0.0,
        "local_blur": 0.0,
        "view": replace(VIEW, crop_scale=(0.4, 1.0)),
    },
    "moco": {**HEADS, "queue_size": QUEUE[0], "momentum": MOMENTUM, "temperature": 0.1},
    "nnclr": {**HEADS, "predictor_hidden_dim": HIDDEN, "queue_size": QUEUE[0], "temperature": 0.2},
    "simclr": {**HEADS, "temperature": TEMPERATURE},
    # lightly's example lets the predictor's rate decay
    "simsiam": {"hidden_dim": HIDDEN, "dim": WIDE, "predictor_hidden_dim": WIDE // 4, "fixed_predictor_lr": False},
    "swav": {**HEADS, **CROPS, "num_prototypes": PROTOTYPES, "view": replace(VIEW, crop_scale=(0.14, 1.0))},
    "vicreg": {"hidden_dim": WIDE, "dim": WIDE, "variance": 12.5},
}


def our_method(name: str, network: Callable[[int], nn.Module], seed: int) -> Method:
    method = find(METHODS, name)
    config = method.Config(**{"view": VIEW, **OURS[name]}, optimizer=sgd(PEERS[name].lr))
    for field in ("view2_blur", "view2_solarize"):
        if hasattr(config, field):
            setattr(config, field, 0.0)
    return method(config, network(seed))


def peer(name: str, network: Callable[[int], nn.Module], seed: int) -> Peer:
    return PEERS[name](network(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=sorted(PEERS), help="a method; may be repeated")
    parser.add_argument("--full", action="store_true", help="ResNet-18 in place of the presets' small one")
    args = parser.parse_args()
    config = Arrays.Config(path=args.data, limit=args.images, limit_test=args.test_images)
    train_set, test_set = Arrays(config, "train"), Arrays(config, "test")
    images = np.ascontiguousarray(train_set.arrays)
    network = partial(backbone, **({} if args.full else SMALL))
    for name in args.only or sorted(PEERS.keys() & classes_in(METHODS)):
        workers, threads, _ = best_setting(partial(peer, name, network), images, args.batch, False)
        for seed in range(args.seeds):
            for column in ("lightly", "ours"):
                if column == "ours":
                    method = our_method(name, network, seed)
                    model, rate = train_ours(method, train_set, args.batch, args.epochs, seed)
                else:
                    make = partial(peer, name, network)
                    model, rate = train_lightly(make, images, args.batch, args.epochs, seed, workers, threads, False)
                    model = model.backbone
                row = {
                    "method": name,
                    "column": column,
                    "seed": seed,
                    "images_per_second": round(rate, 1),
                    "knn_top1": round(knn(model, train_set, test_set), 4),
                    "images": len(images),
                    "batch": args.batch,
                    "epochs": args.epochs,
                    "network": "resnet18" if args.full else "resnet18, width 16, one block a stage",
                    "setting": "auto" if column == "ours" else f"{workers} workers, {threads} threads",
                }
                print(row, flush=True)
                merge("train_methods", [row], ("lightly",), key=("method", "column", "seed"))


if __name__ == "__main__":
    main()
