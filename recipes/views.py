"""A look at the views: contact sheets of what a preset's views are (ssl_fast/data/view_presets.py), one an engine.

    python recipes/views.py method=byol data=image_folder data.root=photos
    python recipes/views.py method=cvrl data=video_folder data.root=videos size=96
    python recipes/views.py method=dino data=cifar10 num_images=12 epoch=3 'engines=[fused]'

Reads a data set. Writes into runs/<run>/views: <engine>.png (each row an image, the whole of it and then its views, in
the colours that the network sees before normalisation; a clip is its frames, side by side) and result.json with each
engine's largest and mean difference from the first one, in levels of 255.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_fast.config import launch, nearest
from ssl_fast.data.datasets import open_dataset
from ssl_fast.data.loader import Loader, choose_engine
from ssl_fast.data.view_presets import PRESETS
from ssl_fast.data.views import Batch, View
from ssl_fast.eval.neighbours import shown
from ssl_fast.train.inputs import data_options
from ssl_fast.train.recipe import run_stage
from ssl_fast.train.run import Stage

ENGINES = ("fused", "torchvision", "dali")
GAP, HEADING, PAPER, INK = 6, 14, (255, 255, 255), (36, 41, 47)  # pixels, colours


@dataclass
class ViewsConfig:
    """Everything that `--help` lists."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"data": "photo_patches"}])
    method: str = "simclr"  # whose views: a name of ssl_fast/data/view_presets.py
    data: Any = None
    split: str = "train"
    engines: list[str] = field(default_factory=list)  # [fused,torchvision,dali]; []: all that can be used here
    num_images: int = 8
    size: int = 0  # of the (global) views, pixels; 0: the paper's, or the images' own where all have one
    seed: int = 0
    epoch: int = 0
    runs: str = "runs"
    run: str = ""  # "": made from method, data and the config's hash
    stage: str = "views"


def sheets(config: ViewsConfig, stage: Stage) -> tuple[dict[str, Any], list[str]]:
    dataset = open_dataset(config.data, config.split)
    size = config.size or (224 if dataset.arrays is None else dataset.arrays.shape[1])
    views = tuple(replace(view, mean=dataset.mean, std=dataset.std) for view in PRESETS[config.method](size=size))
    batches = {name: first_batch(config, dataset, views, name) for name in usable(config.engines, dataset, views)}
    reference = next(iter(batches.values()))
    result: dict[str, Any] = {"method": config.method, "views": [view.name for view in views], "differences": {}}
    for name, batch in batches.items():
        save_sheet(stage.path / f"{name}.png", dataset, batch, views)
        result["differences"][name] = differences(batch, reference, views)
    return result, [f"{name}.png" for name in batches]


def usable(engines: list[str], dataset: Any, views: tuple[View, ...]) -> list[str]:
    """The engines asked for; or those that can be used here."""
    found = []
    for name in engines or ENGINES:
        try:
            found.append(choose_engine(name, dataset, torch.device("cpu"), views)[0])
        except (RuntimeError, ValueError) as error:
            if engines:
                raise ValueError(str(error)) from error
    return found


def first_batch(config: ViewsConfig, dataset: Any, views: tuple[View, ...], engine: str) -> Batch:
    options = replace(config.data, engine=engine, workers=0)
    num = min(config.num_images, len(dataset))
    loader = Loader(dataset, views, options, batch_size=num, seed=config.seed, shuffle=True, drop_last=False)
    return next(iter(loader.epoch(config.epoch)))


def picture(x: torch.Tensor, view: View) -> np.ndarray:
    """[C, S, S], or a clip [C, T, S, S], normalised -> [S, S, C] uint8, the frames of a clip side by side."""
    x = x.permute(0, 2, 1, 3).flatten(2) if view.kind == "clip" else x
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (view.mean, view.std))
    return ((x.float() * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def differences(batch: Batch, reference: Batch, views: tuple[View, ...]) -> dict[str, float]:
    parts = []
    for x, y, view in zip(batch.views, reference.views, views, strict=True):
        std = torch.tensor(view.std).view(1, -1, *[1] * (x.ndim - 2))
        parts.append(((x - y).abs() * std * 255).flatten())
    all_parts = torch.cat(parts)
    return {"largest": round(all_parts.max().item(), 4), "mean": round(all_parts.mean().item(), 6)}


def save_sheet(path: Path, dataset: Any, batch: Batch, views: tuple[View, ...]) -> None:
    from PIL import Image, ImageDraw

    def pil(image: np.ndarray) -> Any:
        return Image.fromarray(shown(image)).convert("RGB")

    height = max(view.size for view in views)
    widths = [height, *(view.size * view.frames for view in views)]
    sheet = Image.new("RGB", (sum(widths) + GAP * len(widths), HEADING + len(batch) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(["image", *(view.name for view in views)]):
        left = sum(widths[:column]) + GAP * column
        draw.text((left, 1), name, INK)
        for row, index in enumerate(batch.index.tolist()):
            if column:
                cell = pil(picture(batch.views[column - 1][row], views[column - 1]))
            else:
                cell = pil(dataset.read(index))
                cell.thumbnail((height, height))
            sheet.paste(cell, (left, HEADING + row * (height + GAP)))
    sheet.save(path)


def main(config: ViewsConfig) -> None:
    if config.method not in PRESETS:
        raise ValueError(f"method: no {config.method!r}{nearest(config.method, PRESETS)}")
    if config.num_images < 1:
        raise ValueError(f"num_images: expected a positive number, got {config.num_images}")
    run_stage(config, (config.method, config.data.name), {}, lambda stage: sheets(config, stage))


if __name__ == "__main__":
    launch(main, ViewsConfig, {"data": data_options()})
