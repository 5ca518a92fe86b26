"""CIFAR-10 to the end on one GPU: kNN of a ResNet-18 as it trains.

    python -m benchmarks.gpu.time_to_accuracy --data cifar10.npz --method simclr

lightly's benchmark's settings: CIFAR stem, batch 512, 200 epochs of SGD at 0.06 x batch / 128 with a cosine, weight
decay 5e-4, SimCLR's views without blur; kNN with k = 200, t = 0.1, all 50,000 training images voting on the 10,000 test
images, as there. (It publishes 0.848 for SimCLR.) `train_seconds` are those of the steps; `wall_seconds`, of this
command, hold compilation, monitor and checkpoints too. A row for each look joins gpu_cifar10.csv at once, in the place
of an older one of the same run, hardware and versions. The same command goes on from the last checkpoint in
`--run`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.gpu.book import RUN
from benchmarks.record import merge
from benchmarks.train.beside_lightly import backbone, sgd
from benchmarks.train.methods_beside_lightly import OURS, our_method
from ssl_fast import distributed
from ssl_fast.data.datasets.arrays import Arrays
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.eval.monitor import MonitorConfig, knn_monitor
from ssl_fast.train.checkpoint import Checkpoints
from ssl_fast.train.inputs import new_evaluation_view
from ssl_fast.train.trainer import Interrupted, TrainConfig, Trainer

LR = 0.12  # of a batch of 256
MONITOR = MonitorConfig(k=200, temperature=0.1, probe=False, max_train=0, max_test=0, batch_size=1000, precision="bf16")


class Curve:
    """The monitor: kNN of the network, written down with the seconds so far."""

    def __init__(self, look: Any, fixed: dict[str, Any]) -> None:
        self.look, self.fixed, self.begun = look, fixed, time.perf_counter()
        self.trainer: Trainer | None = None

    def __call__(self, network: nn.Module) -> dict[str, float]:
        assert self.trainer is not None
        epoch, seconds = self.trainer.step // len(self.trainer.loader), self.trainer.seconds
        score = float(self.look(network)["knn_top1"])
        row = {**self.fixed, "epoch": epoch, "knn_top1": round(score, 4), "train_seconds": round(seconds, 1)}
        row |= {"wall_seconds": round(time.perf_counter() - self.begun, 1)}
        row["images_per_second"] = round(self.trainer.step * self.trainer.config.batch_size / max(seconds, 1e-9), 1)
        print(row, flush=True)
        merge("gpu_cifar10", [row], ("torchvision", "timm"), key=(*RUN, "epoch", "hardware", "versions"))
        return {"knn_top1": score}


def train(args: argparse.Namespace, network: dict[str, Any]) -> bool:
    """Trains from the last checkpoint; whether it came to the end."""
    config = Arrays.Config(path=str(args.data), limit=args.images, limit_test=args.images)
    train_set, test_set = Arrays(config, "train"), Arrays(config, "test")
    device = distributed.initialize(args.device)
    method = our_method(args.method, lambda seed: backbone(seed, **network), args.seed)
    method.config.optimizer = sgd(LR)
    views = method.views(method.config)
    options = {"batch_size": args.batch, "seed": args.seed, "shuffle": True, "drop_last": True}
    loader = Loader(train_set, views, LoaderConfig(), **options, device=device)
    look = knn_monitor(train_set, test_set, new_evaluation_view(views[0], train_set, 32, 1), MONITOR, device=device)
    run = dict(zip(RUN, (args.method, args.epochs, args.batch, len(train_set), args.compile, args.seed), strict=True))
    curve = Curve(look, {**run, "engine": loader.engine})
    trainer = Trainer(
        method,
        loader,
        TrainConfig(
            args.epochs, args.batch, precision="bf16", compile=args.compile, device=args.device, seed=args.seed,
            log_every=len(loader), monitor_every=args.every, checkpoint_every=args.every,
        ),
        checkpoints=Checkpoints(args.run / "-".join(map(str, run.values()))),
        monitor=curve,
    )  # fmt: skip
    curve.trainer = trainer
    trainer.resume()
    try:
        trainer.fit()
    except Interrupted:
        print(f"stopped at epoch {trainer.step // len(loader)}; the same command goes on", flush=True)
        return False
    return True


def main(arguments: list[str] | None = None, network: dict[str, Any] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--method", default="simclr", choices=sorted(OURS))
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--every", type=int, default=5, help="epochs between two looks, and two checkpoints")
    parser.add_argument("--images", type=int, default=0, help="of each split; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="train.compile")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run", type=Path, default=Path("runs/gpu_cifar10"), help="folder of the checkpoints")
    args = parser.parse_args(arguments)
    raise SystemExit(0 if train(args, network or {}) else 1)


if __name__ == "__main__":
    main()
