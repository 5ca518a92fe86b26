"""A tiny training that the tests of exactness, crashes and golden losses share: real code, small pictures."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ssl_fast import distributed
from ssl_fast.config import find
from ssl_fast.data.captions import add_captions
from ssl_fast.data.dataset import ArrayDataset, Dataset
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import Batch
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone, BackboneConfig, build_backbone
from ssl_fast.models.text import TextConfig
from ssl_fast.train.checkpoint import Checkpoints
from ssl_fast.train.trainer import TrainConfig, Trainer
from tests.videos import random_videos

TEXT = TextConfig(width=16, layers=1, heads=2, context_length=12, vocab_size=600)
SMALL: dict[str, dict[str, Any]] = {
    "simclr": {"hidden_dim": 16, "dim": 8},
    "moco": {"hidden_dim": 16, "dim": 8, "queue_size": 50},
    "byol": {"hidden_dim": 16, "dim": 8},
    "swav": {"hidden_dim": 16, "dim": 8, "num_prototypes": 12, "num_local": 2, "queue_size": 20, "queue_start": 0.4}
    | {"freeze_prototypes": 0.1},
    "dino": {"hidden_dim": 16, "bottleneck_dim": 8, "num_prototypes": 12, "num_local": 2, "freeze_last_layer": 0.1},
    "dinov2": {"hidden_dim": 16, "bottleneck_dim": 8, "num_prototypes": 12, "num_local": 2, "freeze_last_layer": 0.1}
    | {"local_size": 16},  # timm resamples positions in fp32, which a run in float64 would show
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "mocov3": {"hidden_dim": 16, "dim": 8},
    "simsiam": {"hidden_dim": 16, "predictor_hidden_dim": 8, "dim": 16},
    "nnclr": {"hidden_dim": 16, "predictor_hidden_dim": 16, "dim": 8, "queue_size": 50},
    "supcon": {"hidden_dim": 16, "dim": 8},
    "vicreg": {"hidden_dim": 16, "dim": 16},
    "barlow_twins": {"hidden_dim": 16, "dim": 16},
    "clip": {"dim": 8, "text": TEXT},
    "siglip": {"dim": 8, "text": replace(TEXT, causal=False, pool="last")},
    "cvrl": {"hidden_dim": 16, "dim": 8, "num_hidden": 1},
}
METHODS = tuple(SMALL)
# Without a teacher, with one and a queue, with masks; the slow tests take the others at night.
EVERY_DAY = ("simclr", "moco", "dinov2")
DAY_AND_NIGHT = [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.nightly) for name in METHODS]
TRANSFORMERS = ("dinov2", "mae")
OF_VIDEOS = ("cvrl",)


def pictures(count: int = 60, side: int = 16) -> ArrayDataset:
    """Random pictures in memory."""
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return ArrayDataset(images, np.arange(count) % 4, list("abcd"))


def samples(method: Method, count: int = 60, side: int = 16) -> Dataset:
    """What a method learns from: random pictures, with captions where it reads them, or random videos."""
    if method.config.name in OF_VIDEOS:
        return random_videos(count, side=side)
    dataset = pictures(count, side)
    add_captions(dataset, "classes", method.tokenizer(method.config))
    return dataset


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


def make_method(
    name: str,
    /,
    norm: str = "group",
    *,
    head_norm: str = "",  # "": as the backbone
    dtype: torch.dtype = torch.float32,
    **optimizer: Any,
) -> Method:
    cls = find("ssl_fast.methods.pretrain", name)
    config = cls.Config(**SMALL[name])
    if hasattr(config, "norm"):
        config.norm = head_norm or norm
    config.view = replace(config.view, size=16, blur=0.0, frames=min(config.view.frames, 2))
    config.optimizer = replace(config.optimizer, warmup_epochs=0, **optimizer)
    torch.manual_seed(0)
    return cls(config, small_backbone(name, norm)).to(dtype)


def small_backbone(method: str, norm: str) -> Backbone:
    """The smallest network that the method takes."""
    if method in TRANSFORMERS:
        return build_backbone(BackboneConfig("test_vit", image_size=16, patch_size=4, depth="2"))
    return build_backbone(BackboneConfig("resnet18", cifar_stem=True, width=8, depth="1,1,1,1", norm=norm))


def make_trainer(
    method: Method, *, batch_size: int, epochs: int, checkpoints: Checkpoints | None = None, **train: Any
) -> Trainer:
    dataset = samples(method)
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
