"""Features of a whole data set: what a frozen backbone makes of every image, once, in the data set's order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_fast.data.dataset import Dataset, Image
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.views import View
from ssl_fast.models.video import channels_last

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Features:
    """Rows in the data set's order; images that could not be decoded are left out and counted.

    Attributes:
        h: [N, F] fp32 on the CPU.
        labels: [N] int64, [N, C] for several a sample, or None without labels.
        names: N file names, or None when the samples have none.
        index: [N] int64, each row's sample number in the data set.
        skipped: samples without a row.
        protocol: how the features were made (view, normalisation, precision), for the record beside every score.
    """

    h: Tensor  # [N, F]
    labels: Tensor | None  # [N]
    names: list[str] | None
    index: Tensor  # [N]
    skipped: int = 0
    protocol: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.h)

    def labelled(self) -> Features:
        """The rows whose class is known: without those labelled -1."""
        if self.labels is None or self.labels.ndim > 1 or bool((self.labels >= 0).all()):
            return self
        rows = (self.labels >= 0).nonzero().squeeze(1)
        names = None if self.names is None else [self.names[i] for i in rows.tolist()]
        return replace(self, h=self.h[rows], labels=self.labels[rows], names=names, index=self.index[rows])


def extract_features(
    backbone: nn.Module,  # images [N, C, H, W], or clips [N, C, T, H, W] -> features [N, F]
    dataset: Dataset,
    view: View,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    loader: LoaderConfig | None = None,
) -> Features:
    """The backbone's features of every image of a data set.

    The backbone runs in evaluation mode (running batch statistics, no dropout) without gradients, and gets its training
    flags back, module by module. No global random state is read or changed. Clips are taken at
    even places; with `view.clips` above 1 a video's features are the mean over so many.

    Args:
        backbone: its memory format stays as it is, for a training may go on with it.
        dataset: anything that `Loader` takes.
        view: an evaluation view: centre crop, nothing random.
        batch_size: images at a time.
        device: the backbone is moved there; None: it is used where it is.
        precision: "fp32", or "bf16" for autocast; features come back in fp32 either way.
        loader: engine and workers.

    Raises:
        ValueError: the view is random, the precision unknown, the backbone's output is not [N, F], or no image of the
            data set can be decoded.
    """
    _check_view(view)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected {' or '.join(PRECISIONS)}, got {precision!r}")
    device = torch.device(device) if device is not None else _device_of(backbone)
    batches = Loader(
        dataset,
        (replace(view, place="even", clips=1),) * view.clips,
        loader or LoaderConfig(),
        batch_size=batch_size,
        seed=0,
        shuffle=False,
        drop_last=False,
        device=device,
    )
    backbone = backbone.to(device)
    h, found = torch.empty(0), torch.zeros(len(dataset), dtype=torch.bool)
    with evaluation_mode(backbone):
        for batch in batches.epoch(0):
            dtype = PRECISIONS[precision]
            rows = torch.stack([_forward(backbone, clips, device.type, dtype) for clips in batch.views]).mean(dim=0)
            if not len(h):
                h = torch.zeros(len(dataset), rows.shape[1])
            index = batch.index.cpu()
            h[index] = rows.cpu()
            found[index] = True
    batches.close()
    return _assemble(dataset, h, found, _protocol(view, precision) | {"engine": batches.engine})


def raw_pixels(dataset: Dataset) -> Features:
    """The images themselves as features, h [N, H * W * C] in [0, 1]: the baseline that any representation must beat.

    Raises:
        ValueError: the images differ in size.
    """
    images = np.stack(list(_equal_sizes(dataset))) if dataset.arrays is None else np.asarray(dataset.arrays)
    # The cast copies: a memory-mapped array is read-only, which torch warns of.
    h = torch.from_numpy(images.astype(np.float32)).flatten(1).div_(255)
    return _assemble(dataset, h, torch.ones(len(h), dtype=torch.bool), {"feature_layer": "raw pixels in [0, 1]"})


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each submodule has its own training flag again (frozen parts stay frozen)."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


def _device_of(module: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _forward(
    backbone: nn.Module,
    images: Tensor,  # [N, C, H, W] or [N, C, T, H, W]
    device_type: str,
    dtype: torch.dtype,
) -> Tensor:
    with torch.inference_mode(), torch.autocast(device_type, dtype=dtype, enabled=dtype != torch.float32):
        rows: Tensor = backbone(channels_last(images))
    if rows.ndim != 2:
        raise ValueError(f"backbone: expected features [N, F] for images [N, C, H, W], got shape {tuple(rows.shape)}")
    return rows.float()


def _assemble(
    dataset: Dataset,
    h: Tensor,  # [len(dataset), F]
    found: Tensor,  # [len(dataset)] bool
    protocol: dict[str, Any],
) -> Features:
    index = found.nonzero().squeeze(1)
    if not len(index):
        raise ValueError(f"dataset: expected at least one image that can be decoded, got none of {len(dataset)}")
    labels = None if dataset.labels is None else torch.tensor(np.asarray(dataset.labels), dtype=torch.int64)[index]
    names = None if dataset.names is None else [dataset.names[i] for i in index.tolist()]
    rows = h if len(index) == len(h) else h[index]
    return Features(rows, labels, names, index, len(dataset) - len(index), protocol)


def _equal_sizes(dataset: Dataset) -> Iterator[Image]:
    first = None
    for i in range(len(dataset)):
        image = dataset.read(i)  # uint8 [H, W, C]
        first = image.shape if first is None else first
        if image.shape != first:
            raise ValueError(
                f"dataset: raw pixels need images of one size, expected {first} as the first, got {image.shape} at {i}"
            )
        yield image


def _check_view(view: View) -> None:
    """An evaluation that depends on random crops is not a protocol."""
    random = [name for name in ("flip", "jitter", "grayscale", "blur", "solarize") if getattr(view, name) > 0]
    if view.policy:
        random.append(f"policy={view.policy!r}")
    if view.crop != "center":
        random.insert(0, f"crop={view.crop!r}")
    if random:
        raise ValueError(f"view: expected an evaluation view (crop='center', nothing random), got {', '.join(random)}")


def _protocol(view: View, precision: str) -> dict[str, Any]:
    return {
        "feature_layer": "backbone feature h",
        "batch_norm": "running statistics (evaluation mode)",
        "view": {
            "size": view.size,
            "crop": view.crop,
            "crop_scale": list(view.crop_scale),
            "interpolation": view.interpolation,
            "mean": list(view.mean),
            "std": list(view.std),
            **({name: getattr(view, name) for name in ("frames", "stride", "clips")} if view.kind == "clip" else {}),
        },
        "precision": precision,
    }
