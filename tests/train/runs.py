"""A tiny training that the tests of exactness, crashes and golden losses share: real code, small pictures."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ssl_fast import distributed
from ssl_fast.config import find
from ssl_fast.data.dataset import ArrayDataset, Dataset
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import Batch
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from ssl_fast.train.checkpoint import Checkpoints
from ssl_fast.train.trainer import TrainConfig, Trainer
from tests.videos import random_videos

METHODS = ("simclr", "moco", "byol", "cvrl")
OF_VIDEOS = ("cvrl",)
SMALL = {
    "simclr": {"hidden_dim": 16, "dim": 8},
    "moco": {"hidden_dim": 16, "dim": 8, "queue_size": 50},
    "byol": {"hidden_dim": 16, "dim": 8},
    "cvrl": {"hidden_dim": 16, "dim": 8, "num_hidden": 1},
}


def pictures(count: int = 60, side: int = 16) -> ArrayDataset:
    """Random pictures in memory."""
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return ArrayDataset(images, np.arange(count) % 4, list("abcd"))


def samples(method: str, count: int = 60, side: int = 16) -> Dataset:
    """What a method learns from: random pictures, or random videos."""
    return random_videos(count, side=side) if method in OF_VIDEOS else pictures(count, side)


class DoubleLoader:
    """A loader whose pictures are float64."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.collect = loader, loader.collect
        self.engine, self.workers, self.dataset = loader.engine, loader.workers, loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self.loader.epoch(epoch, start):
            yield Batch(tuple(v.double() for v in batch.views), batch.labels, batch.index, batch.extras)


class Losses:
    """A tracker that remembers the losses."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, step: int, **values: Any) -> None:
        if "loss" in values:
            self.values.append(values["loss"])


def make_method(name: str, /, norm: str = "group", *, dtype: torch.dtype = torch.float32, **optimizer: Any) -> Method:
    cls = find("ssl_fast.methods.pretrain", name)
    config = cls.Config(**SMALL[name], norm=norm)
    config.view = replace(config.view, size=16, blur=0.0, frames=min(config.view.frames, 2))
    config.optimizer = replace(config.optimizer, warmup_epochs=0, **optimizer)
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("resnet18", cifar_stem=True, width=8, depth="1,1,1,1", norm=norm))
    return cls(config, backbone).to(dtype)


def make_trainer(
    method: Method, *, batch_size: int, epochs: int, checkpoints: Checkpoints | None = None, **train: Any
) -> Trainer:
    dataset = samples(method.config.name)
    views = tuple(replace(v, mean=dataset.mean, std=dataset.std) for v in method.views(method.config))
    loader: Any = Loader(
        dataset,
        views,
        LoaderConfig(engine="torchvision", workers=0),
        batch_size=batch_size,
        seed=0,
        shuffle=True,
        drop_last=True,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    if next(method.parameters()).dtype == torch.float64:
        loader = DoubleLoader(loader)
    config = TrainConfig(
        epochs=epochs, batch_size=batch_size, precision="fp32", device="cpu", log_every=1, monitor_every=0, **train
    )
    return Trainer(method, loader, config, checkpoints=checkpoints)


def train_losses(method: Method, *, batch_size: int, epochs: int, **train: Any) -> list[float]:
    losses: Any = Losses()
    make_trainer(method, batch_size=batch_size, epochs=epochs, **train).fit(losses)
    return losses.values


def first_gradients(method: Method, *, batch_size: int, **train: Any) -> dict[str, torch.Tensor]:
    """Parameter gradients of the first step, as the optimiser sees them."""
    trainer = make_trainer(method, batch_size=batch_size, epochs=1, **train)
    batch = next(iter(trainer.loader.epoch(0)))
    trainer.step_runner(batch, 0.0, 0)
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
