"""SimCLR on ResNet-18 (CIFAR stem) beside lightly's own components: images/s and kNN, interleaved in one run.

    python benchmarks/train/beside_lightly.py --data cifar10.npz

Columns: `lightly` (its transform and NTXentLoss, torch's DataLoader at its best of 0, 1, 2 workers and 1, 2 threads,
fp32 as its examples run on a CPU), `lightly+` (the same with our bf16, channels_last and stacked views), `ours`. The
same images, backbone, projector, batch, epochs, optimiser and schedule; seconds are those of the training loop alone.
Needs `pip install lightly==1.6.0`. About 45 minutes on two cores.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.record import write
from ssl_fast.data.datasets.arrays import Arrays
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View
from ssl_fast.eval.features import extract_features
from ssl_fast.eval.knn import knn_accuracy
from ssl_fast.methods.base import Method
from ssl_fast.methods.pretrain.simclr import SimCLR
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from ssl_fast.optim.config import OptimizerConfig
from ssl_fast.train.trainer import TrainConfig, Trainer

TEMPERATURE, LR, MOMENTUM, WEIGHT_DECAY, HIDDEN, DIM = 0.5, 0.06, 0.9, 5e-4, 512, 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# SimCLR, appendix B.9: no blur on CIFAR-10, jitter strength 0.5.
VIEW = View(
    size=32, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grayscale=0.2, mean=MEAN, std=STD
)


NORMALIZE = {"mean": list(MEAN), "std": list(STD)}


def backbone(seed: int, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone(BackboneConfig("resnet18", cifar_stem=True, **options))


class Pictures(Dataset):
    """What lightly's loader feeds its transform: PIL images."""

    def __init__(self, images: np.ndarray, transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[Tensor]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i]))


class Peer(nn.Module):
    """A method of lightly's parts around our backbone, as its examples put them together. This one is SimCLR."""

    lr = LR

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.build(backbone.num_features)

    def build(self, features: int) -> None:
        """The heads on `features` numbers, and the loss."""
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        self.projector = SimCLRProjectionHead(features, HIDDEN, DIM)
        self.criterion = NTXentLoss(temperature=TEMPERATURE)

    def transform(self) -> Any:
        """From a PIL image to its views."""
        from lightly.transforms import SimCLRTransform

        return SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0, normalize=NORMALIZE)

    def loss(self, views: Sequence[Tensor], stacked: bool) -> Tensor:
        return self.criterion(*encode(nn.Sequential(self.backbone, self.projector), views[0], views[1], stacked))

    def after_step(self, progress: float) -> None:
        """Teachers move here; `progress` is the share of all steps done."""


def simclr_peer(seed: int) -> Peer:
    return Peer(backbone(seed))


def lightly_loader(images: np.ndarray, transform: Any, batch: int, workers: int, device: str = "cpu") -> DataLoader:
    options: dict[str, Any] = {"persistent_workers": True} if workers else {}
    options["pin_memory"] = device == "cuda"
    return DataLoader(Pictures(images, transform), batch, shuffle=True, drop_last=True, num_workers=workers, **options)


def train_lightly(
    make: Callable[[int], Peer],
    images: np.ndarray,
    batch: int,
    epochs: int,
    seed: int,
    workers: int,
    threads: int,
    ours: bool,
    steps: int = 0,
    device: str = "cpu",
) -> tuple[nn.Module, float]:
    """Trains with lightly's parts; with `ours`, under our bf16, channels_last and stacked views. -> images/s."""
    torch.set_num_threads(threads)
    model = make(seed).to(device)
    if ours:
        model = model.to(memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, model.lr * batch / 256, MOMENTUM, weight_decay=WEIGHT_DECAY)
    loader = lightly_loader(images, model.transform(), batch, workers, device)
    total = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    done, begun = 0, time.perf_counter()
    for _ in range(epochs):
        for views in loader:
            done += 1
            if steps and done == 2:
                wait(device)
                begun = time.perf_counter()  # timing a loader: workers are up and kernels are chosen
            with torch.autocast(device, dtype=torch.bfloat16, enabled=ours):
                loss = model.loss([view.to(device, non_blocking=True) for view in views], ours)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            model.after_step(done / total)
            if steps and done > steps:
                wait(device)
                return model, steps * batch / (time.perf_counter() - begun)
    wait(device)
    return model, done * batch / (time.perf_counter() - begun)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def encode(model: nn.Module, first: Tensor, second: Tensor, stacked: bool) -> tuple[Tensor, ...]:
    if not stacked:
        return model(first), model(second)
    return model(torch.cat([first, second]).contiguous(memory_format=torch.channels_last)).chunk(2)


def best_setting(make: Callable[[int], Peer], images: np.ndarray, batch: int, ours: bool) -> tuple[int, int, float]:
    """Workers and threads at which lightly is fastest, by a few steps each."""
    rates = {}
    for workers in (0, 1, 2):
        for threads in (1, 2):
            _, rates[workers, threads] = train_lightly(make, images, batch, 1, 0, workers, threads, ours, steps=3)
            print(f"  {workers} workers, {threads} threads: {rates[workers, threads]:.1f} images/s", flush=True)
    (workers, threads), rate = max(rates.items(), key=lambda item: item[1])
    return workers, threads, rate


def sgd(lr: float = LR) -> OptimizerConfig:
    return OptimizerConfig("sgd", lr, warmup_epochs=0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def simclr(seed: int) -> SimCLR:
    config = SimCLR.Config(temperature=TEMPERATURE, hidden_dim=HIDDEN, dim=DIM, view=VIEW, optimizer=sgd())
    return SimCLR(config, backbone(seed))


def train_ours(method: Method, dataset: Any, batch: int, epochs: int, seed: int) -> tuple[nn.Module, float]:
    torch.set_num_threads(2)
    begun = time.perf_counter()
    views = method.views(method.config)
    loader = Loader(dataset, views, LoaderConfig(), batch_size=batch, seed=seed, shuffle=True, drop_last=True)
    train = TrainConfig(epochs=epochs, batch_size=batch, seed=seed, monitor_every=0, device="cpu")
    figures = Trainer(method, loader, train).fit()
    return method.backbone, figures["steps"] * batch / (time.perf_counter() - begun)


def knn(model: nn.Module, train_set: Any, test_set: Any) -> float:
    torch.set_num_threads(2)
    view = replace(VIEW, crop="center", flip=0.0, brightness=0, contrast=0, saturation=0, hue=0, jitter=0, grayscale=0)
    features = [
        extract_features(model.to(memory_format=torch.channels_last), data, view, precision="bf16")
        for data in (train_set, test_set)
    ]
    return knn_accuracy(features[0].h, features[0].labels, features[1].h, features[1].labels)["top1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    config = Arrays.Config(path=args.data, limit=args.images)
    train_set, test_set = Arrays(config, "train"), Arrays(config, "test")
    images = np.ascontiguousarray(train_set.arrays)
    settings = {
        name: best_setting(simclr_peer, images, args.batch, name != "lightly") for name in ("lightly", "lightly+")
    }

    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for column in ("lightly", "ours", "lightly+"):
            if column == "ours":
                model, rate = train_ours(simclr(seed), train_set, args.batch, args.epochs, seed)
            else:
                workers, threads, _ = settings[column]
                model, rate = train_lightly(
                    simclr_peer, images, args.batch, args.epochs, seed, workers, threads, ours=column == "lightly+"
                )
                model = model.backbone
            score = knn(model, train_set, test_set)
            setting = "auto" if column == "ours" else f"{workers} workers, {threads} threads"
            row = {"column": column, "seed": seed, "images_per_second": round(rate, 1), "knn_top1": round(score, 4)}
            row |= {"images": len(images), "batch": args.batch, "epochs": args.epochs, "setting": setting}
            print(row, flush=True)
            rows.append(row)
            write("train_beside_lightly", rows, ("lightly",))
    for column in ("lightly", "lightly+", "ours"):
        mine = [row for row in rows if row["column"] == column]
        rate = statistics.median(row["images_per_second"] for row in mine)
        score = statistics.mean(row["knn_top1"] for row in mine)
        print(f"{column:9s} {rate:8.1f} images/s (median)   kNN {score:.4f} (mean of {len(mine)})")


if __name__ == "__main__":
    main()
