"""Images a second of whole training steps: our views on the GPU, others', the same batch again, and lightly's parts.

    python -m benchmarks.gpu.time_training --seconds 300

SimCLR in bf16, or the method that is named. Jobs: ResNet-18 (CIFAR stem) at 32 px, batch 512; ResNet-50 at 224 px,
batch 256, and ViT-S/16 at 224 px, batch 256, of pictures of 375 x 500 that lie on the GPU. Providers, each the trainer
itself unless it says lightly:

    fused       views by our engine, on the GPU
    constant    one batch of views again and again: what the step without data comes to
    kornia      its transforms of the same pictures, on the GPU
    lightly     its transform, networks and loss, and torch's loader, in fp32 as its examples run; "+": under our bf16,
                channels_last and stacked views
    compiled    train.compile
    moco, ...   another method, for its loss's share of a step

`images_per_second` is the median epoch's after one that warms up; images count once, whatever their views.
`of_peak`: the network's arithmetic (three forward passes' worth for each view) of the rate of a large bf16 product of
torch's own in this run. Shares of a step: data (views, waited for or made), forward, backward, optimizer; and `loss`,
the op alone on a step's rows, forward and backward, which `forward` and `backward` hold in them.
`--device cpu --small` tries the same code out anywhere.
"""

import gc
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data.contenders import installed
from benchmarks.gpu.book import Book, Row, options, parsed, working
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.time_views import pictures, transforms
from benchmarks.train.beside_lightly import sgd, simclr_peer, train_lightly
from benchmarks.train.methods_beside_lightly import our_method
from ssl_fast import distributed
from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.resident import unavailable
from ssl_fast.data.view_presets import simclr as simclr_views
from ssl_fast.data.views import Batch
from ssl_fast.methods.base import Method
from ssl_fast.methods.pretrain.simclr import SimCLR
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from ssl_fast.train.precision import autocast
from ssl_fast.train.trainer import TrainConfig, Trainer

EPOCHS = 5  # the first warms up
PACKAGES = ("torchvision", "timm", "kornia", "lightly")


@dataclass(frozen=True)
class Job:
    """A network, the pictures, and who takes part."""

    backbone: BackboneConfig
    size: int  # of the views, pixels
    picture: tuple[int, int]  # height, width
    batch: int
    steps: int  # an epoch
    providers: tuple[str, ...]


PHOTO = (375, 500)
OURS = ("fused", "constant", "fused compiled", "constant compiled")
METHODS = ("moco", "byol", "swav", "dino", "vicreg", "barlow_twins")
JOBS = {
    "vit_s16 224 px, batch 256": Job(
        BackboneConfig("vit_small_patch16_224"), 224, PHOTO, 256, 12, (*OURS[:2], "kornia", *OURS[2:])
    ),
    "resnet50 224 px, batch 256": Job(
        BackboneConfig("resnet50"), 224, PHOTO, 256, 12, (*OURS[:2], "kornia", *OURS[2:])
    ),
    "resnet18 32 px, batch 512": Job(
        BackboneConfig("resnet18", cifar_stem=True),
        32,
        (32, 32),
        512,
        97,
        (*OURS, "lightly", "lightly+", *(f"fused {name}" for name in METHODS)),
    ),
}
SMALL = {
    "resnet 32 px": Job(
        BackboneConfig("resnet18", cifar_stem=True, width=8, depth="1,1,1,1"),
        32,
        (40, 50),
        8,
        2,
        (*OURS[:2], "fused moco"),
    )
}


class Constant(Loader):
    """The first batch, for ever."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """As many times as there are steps."""
        if not hasattr(self, "_kept"):
            self._kept = next(iter(super().epoch(0)))
        yield from (self._kept for _ in range(start, len(self)))


class Kornia(Loader):
    """The same pictures on the same device, augmented by kornia."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches in the loader's order."""
        if not hasattr(self, "_planes"):
            assert self.dataset.arrays is not None
            self._planes = torch.from_numpy(self.dataset.arrays).to(self.device).permute(0, 3, 1, 2).contiguous()
            view = self.views[0]
            self._transform = transforms(view.size, 0.5 if view.size == 32 else 1.0, view.blur, self.device)
        for index in torch.from_numpy(self.order(epoch)).split(self.batch_size)[start : len(self)]:
            chosen = self._planes[index.to(self.device)].float() / 255
            yield Batch(tuple(self._transform(chosen) for _ in self.views), None, index)


LOADERS: dict[str, type[Loader]] = {"fused": Loader, "constant": Constant, "kornia": Kornia}


class Shares:
    """A tracker that keeps the last shares of a step's time."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def log(self, step: int, **values: Any) -> None:
        """Keeps `time_*`, as shares."""
        times = {name: value for name, value in values.items() if name.startswith("time_") and isinstance(value, float)}
        if times:  # the monitor's figures have none
            self.found = {name: value for name, value in times.items() if not name.endswith("_seconds")}


def dataset(job: Job) -> ArrayDataset:
    """Pictures, few of which differ: the views of them all do."""
    num = job.batch * job.steps
    few = pictures(min(num, 512), *job.picture, "cpu").numpy()
    return ArrayDataset(np.concatenate([few] * -(-num // len(few)))[:num], None, ())


def method(job: Job, name: str) -> Method:
    """On small pictures a method as benchmarks/train compares it with lightly's; else the paper's SimCLR."""
    if job.size == 32:
        return our_method(name, lambda seed: build_backbone(job.backbone), 0)
    torch.manual_seed(0)
    return SimCLR(SimCLR.Config(view=simclr_views(job.size)[0], optimizer=sgd()), build_backbone(job.backbone))


def ours(job: Job, images: ArrayDataset, provider: str, clock: Clock) -> Row:
    """Trains a few epochs with one of our loaders."""
    words = provider.split()
    chosen, compiled = next((word for word in words if word in METHODS), "simclr"), "compiled" in words
    if clock.cuda and (reason := unavailable(images, torch.device("cuda"))):
        raise RuntimeError(reason)
    model, tracker, seconds = method(job, chosen), Shares(), []
    loader = LOADERS[words[0]](
        images, model.views(model.config), LoaderConfig(engine="fused"),
        batch_size=job.batch, seed=0, shuffle=True, drop_last=True, device=distributed.initialize(clock.device),
    )  # fmt: skip
    config = TrainConfig(EPOCHS, job.batch, precision="bf16", compile=compiled, device=clock.device)
    config.log_every = job.steps
    trainer = Trainer(model, loader, config, monitor=lambda _: (seconds.append(trainer.seconds), {})[1])
    trainer.fit(tracker)  # type: ignore[arg-type]
    step = statistics.median(after - before for before, after in pairwise(seconds)) / job.steps
    shares = {f"{part.removeprefix('time_')}_percent": round(100 * x, 1) for part, x in tracker.found.items()}
    alone = loss_alone(trainer)
    times = [clock.milliseconds(alone, True) for _ in range(3 if clock.small else 20)]
    shares["loss_percent"] = round(statistics.median(times) / step / 10, 1)
    return {"images_per_second": round(job.batch / step, 1), **shares}


def loss_alone(trainer: Trainer) -> Callable[[], object]:
    """The loss of a step's rows, forward and backward to the rows and to what the loss itself learns."""
    model = trainer.method
    batch = next(iter(trainer.loader.epoch(0))).to(trainer.device)
    batch.extras |= model.extras(batch, 0)
    with torch.no_grad(), autocast("bf16", trainer.device):
        rows, targets = model.embed(batch), model.targets(batch)
    wanted = [row.requires_grad_() for row in rows.values() if row.is_floating_point()]
    wanted += [p for p in model.parameters() if p.requires_grad]

    def step() -> object:
        with autocast("bf16", trainer.device):
            loss = model.loss({**rows, **targets}, batch, 0.0)["loss"]
        return torch.autograd.grad(loss, wanted, allow_unused=True)

    step()
    return step


def lightly(job: Job, images: ArrayDataset, provider: str, clock: Clock) -> Row:
    """lightly's parts with as many workers as there are cores, at most 16, one left to the training."""
    assert images.arrays is not None
    workers = max(1, min(16, len(os.sched_getaffinity(0)) - 1))
    steps = 2 * job.steps  # two epochs, without the first steps of the first
    _, rate = train_lightly(
        simclr_peer, images.arrays, job.batch, 3, 0, workers, 1, provider == "lightly+", steps, clock.device
    )
    return {"images_per_second": round(rate, 1)}


def gflop(job: Job) -> float:
    """Of a training step, for each image: both views, forward and twice as much backward."""
    network = build_backbone(job.backbone).eval()
    # The counter does not know a CPU's own attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, job.size, job.size))
    return 6e-9 * counter.get_total_flops()


def measure(job: Job, images: ArrayDataset, provider: str, clock: Clock, rate: float) -> Row:
    """A provider's row."""
    package = provider.rstrip("+")
    if package in ("kornia", "lightly") and not installed(package):
        raise RuntimeError(f"{package} is not installed")
    train, work = lightly if package == "lightly" else ours, gflop(job)
    found = train(job, images, provider, clock)
    row = {"provider": provider, "batch": job.batch, **found}
    if provider.split()[-1] in METHODS:  # teachers and crops have arithmetic of their own
        return row
    return row | {"gflop": round(work, 2), "of_peak": round(1e11 * found["images_per_second"] * work / rate, 1)}


def main(arguments: list[str] | None = None) -> None:
    args = parsed(options(__doc__, "gpu_training", 300), arguments)
    book, clock = Book(args.output, PACKAGES, args.seconds, args.again), Clock(args.device, args.small)
    rate = clock.flop_rate(torch.bfloat16)
    for name, job in (SMALL if args.small else JOBS).items():
        images = None
        for provider in job.providers:
            chapter = f"{name}, {provider}"
            if not book.opens(chapter):
                continue
            images = images or dataset(job)
            row = working(chapter, partial(measure, job, images, provider, clock, rate))
            if row is not None:
                print(chapter, row, flush=True)
                book.close(chapter, [{"job": name, **row}])
            gc.collect()  # a trainer and its monitor hold each other, and the images on the GPU
            if args.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
