"""Stage 2, zero_shot: what image and text towers know without training: classes by their names, captions, images.

    python recipes/zero_shot.py run=my-run
    python recipes/zero_shot.py run=my-run data=image_folder data.root=photos templates=templates.txt stage=photos
    python recipes/zero_shot.py run=my-run data=image_text data.path=pairs.jsonl evaluate=all stage=pairs

Reads backbone.* and towers.* of a pretrain stage with method=clip or siglip and, unless `data=` names another, that
stage's data set. Writes result.json into runs/<run>/zero_shot: top-1 and top-5 accuracy where samples have one class
each, recall at 1, 5 and 10 both ways where they have captions of their own.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_fast import distributed
from ssl_fast.config import launch
from ssl_fast.data.captions import read_templates
from ssl_fast.data.dataset import Dataset
from ssl_fast.data.datasets import open_dataset
from ssl_fast.eval.features import extract_features
from ssl_fast.eval.retrieval import retrieval_recall
from ssl_fast.eval.zero_shot import Embed, class_embeddings, text_embedder, zero_shot_accuracy
from ssl_fast.models.backbone import load_backbone
from ssl_fast.models.text import Tokenizer
from ssl_fast.models.towers import DESCRIPTION, WEIGHTS, load_towers
from ssl_fast.train.inputs import backbone_files, data_options, evaluation_view, find_input, saved_group
from ssl_fast.train.recipe import run_stage
from ssl_fast.train.run import Stage

DATA = data_options()


@dataclass
class ZeroShotConfig:
    """Everything that `--help` lists."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"data": None}])
    data: Any = None  # the input's own data set
    templates: str = ""  # file of sentences, one a line, {} for the class; "": those of ssl_fast/data/captions.py
    evaluate: str = "test"  # the split that is scored
    batch_size: int = 256
    precision: str = "fp32"  # of the image tower: fp32 | bf16
    device: str = "auto"
    input: str = ""  # a stage of the run, or a stage's folder; "": the run's pretrain stage
    runs: str = "runs"
    run: str = ""  # "": the input's run
    stage: str = "zero_shot"


def zero_shot(config: ZeroShotConfig, folder: Path, stage: Stage) -> tuple[dict[str, Any], list[str]]:
    backbone, preprocessing = load_backbone(folder)
    projection, tower = load_towers(folder)
    device = distributed.initialize(config.device)
    dataset = open_dataset(config.data, config.evaluate)
    own_captions = not config.data.captions and dataset.captions is not None
    if not dataset.has_classes and not own_captions:
        raise ValueError(f"data: expected classes or captions, and the {config.evaluate} split has neither")
    found = extract_features(
        nn.Sequential(backbone, projection),
        dataset,
        evaluation_view(preprocessing),
        batch_size=config.batch_size,
        device=device,
        precision=config.precision,
        loader=config.data,
    )
    embed = text_embedder(tower, Tokenizer(tower.config), batch_size=config.batch_size, device=device)
    result: dict[str, Any] = {}
    if dataset.has_classes:
        templates = read_templates("templates", config.templates)
        known = found.labelled()
        result |= zero_shot_accuracy(known.h, known.labels, class_embeddings(embed, dataset.classes, templates))
        result["templates"] = list(templates)
    if own_captions:
        result |= recall(dataset, found.h, found.index, embed)
    protocol = found.protocol | {"feature_layer": "image projection of the backbone feature h"}
    result |= {"features": protocol, "num_images": len(found), "skipped": found.skipped}
    return result | {"data": {"name": config.data.name, "split": config.evaluate}}, []


def recall(dataset: Dataset, image: Tensor, index: Tensor, embed: Embed) -> dict[str, Any]:
    """Retrieval among all images that could be read and all of their captions."""
    assert dataset.captions is not None
    texts = [(row, text) for row, i in enumerate(index.tolist()) for text in dataset.captions[i]]
    rows = torch.tensor([row for row, _ in texts])
    return {"retrieval": retrieval_recall(image, embed([text for _, text in texts]), rows)}


def main(config: ZeroShotConfig) -> None:
    config.run, folder = find_input(config.runs, config.run, config.input, "pretrain")
    config.data = config.data or saved_group(folder, "data", DATA)
    inputs = backbone_files(folder) | {name: folder / name for name in (WEIGHTS, DESCRIPTION)}
    run_stage(config, ("zero_shot", config.data.name), inputs, lambda stage: zero_shot(config, folder, stage))


if __name__ == "__main__":
    launch(main, ZeroShotConfig, {"data": DATA})
