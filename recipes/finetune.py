"""Stage 3, finetune: a backbone and a linear head, trained with labels: frozen, full, or unfrozen after some epochs.

    python recipes/finetune.py run=my-run train.epochs=30
    python recipes/finetune.py run=my-run stage=finetune_head method.frozen=true
    python recipes/finetune.py run=my-run stage=finetune_gently method.unfreeze_after_epoch=5
    python recipes/finetune.py input=none data=cifar10 backbone.cifar_stem=true size=32     (supervised from scratch)

Reads backbone.safetensors + backbone.json of a pretrain (or finetune) stage and, unless `data=` names another, that
stage's data set. Writes backbone.safetensors + backbone.json, head.safetensors + classes.json and result.json into
runs/<run>/finetune.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_fast import distributed
from ssl_fast.config import classes_in, find, launch
from ssl_fast.data.dataset import Dataset
from ssl_fast.data.datasets import labelled_dataset, splits
from ssl_fast.data.loader import Loader
from ssl_fast.data.views import View
from ssl_fast.eval.features import extract_features
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone, BackboneConfig, build_backbone, load_backbone, save_backbone
from ssl_fast.models.classifier import Classifier, save_head
from ssl_fast.models.vit import check_sizes
from ssl_fast.train import inputs
from ssl_fast.train.checkpoint import Checkpoints
from ssl_fast.train.inputs import backbone_files, check_channels, data_options, evaluation_view, find_input, saved_group
from ssl_fast.train.recipe import run_stage
from ssl_fast.train.run import Stage
from ssl_fast.train.tracking import Tracker
from ssl_fast.train.trainer import TrainConfig, Trainer

METHODS = "ssl_fast.methods.finetune"
DATA = data_options()


@dataclass
class FinetuneConfig:
    """Everything that `--help` lists."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"method": "supervised"}, {"data": None}])
    method: Any = None
    data: Any = None  # the input's own data set
    backbone: BackboneConfig = field(default_factory=BackboneConfig)  # with input=none; otherwise its lora_* and ia3
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=30))
    size: int = 0  # of the views, pixels; 0: the input's, with input=none the method's
    evaluate: str = "test"  # the split that the final accuracy is of
    input: str = ""  # a stage of the run, a stage's folder, or none; "": the run's pretrain stage
    runs: str = "runs"
    run: str = ""  # "": the input's run
    stage: str = "finetune"


def starting_point(config: FinetuneConfig, folder: Path | None, train_set: Dataset) -> tuple[Backbone, View]:
    """The backbone and its evaluation view: those of the input, or new ones."""
    torch.manual_seed(config.train.seed)
    if folder is None:
        view = inputs.new_evaluation_view(config.method.view, train_set, config.size or config.method.view.size)
        return build_backbone(replace(config.backbone, in_channels=train_set.channels)), view
    backbone, preprocessing = load_backbone(folder, adapters=config.backbone)
    view = evaluation_view(preprocessing)
    return backbone, replace(view, size=config.size or view.size)


def top1_of(method: Method, dataset: Dataset, view: View, config: FinetuneConfig) -> dict[str, Any]:
    """Accuracy of backbone and head on a data set."""
    model = Classifier(method.backbone, method.head)
    logits = extract_features(model, dataset, view, loader=config.data).labelled()
    return {
        "top1": (logits.h.argmax(1) == logits.labels).double().mean().item(),
        "num_images": len(logits),
        "skipped": logits.skipped,
        "view": logits.protocol["view"],
    }


def finetune(config: FinetuneConfig, folder: Path | None, stage: Stage) -> tuple[dict[str, Any], list[str]]:
    train_set = labelled_dataset(config.data, "train", whole=True)
    test_set, num = labelled_dataset(config.data, config.evaluate), len(train_set.classes)
    if config.method.num_classes not in (0, num):
        raise ValueError(f"method.num_classes: expected 0 or the data set's {num}, got {config.method.num_classes}")
    backbone, eval_view = starting_point(config, folder, train_set)
    check_channels(train_set, eval_view)
    check_sizes(backbone.model, {eval_view.size})
    torch.manual_seed(config.train.seed)
    method_class = find(METHODS, config.method.name)
    method_config = replace(config.method, num_classes=num, epochs=config.train.epochs)
    method = method_class(method_config, backbone)
    same = {name: getattr(eval_view, name) for name in ("kind", "frames", "stride", "size", "mean", "std")}
    loader = Loader(
        train_set,
        tuple(replace(view, **same) for view in method_class.views(method_config)),
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        shuffle=True,
        drop_last=True,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        device=distributed.initialize(config.train.device),
    )
    monitor = None
    if "val" in splits(config.data) and config.evaluate != "val":
        monitor = val_monitor(method, labelled_dataset(config.data, "val"), eval_view, config)
    saved = Checkpoints(stage.path / "checkpoints")
    trainer = Trainer(method, loader, config.train, checkpoints=saved, monitor=monitor)
    start, train = trainer.resume(), config.train
    tracker = Tracker(stage.path, train.tensorboard, train.wandb, stage.path.parent.name, asdict(config), start)
    figures = trainer.fit(tracker)
    tracker.close()
    if distributed.rank():
        return {}, []
    save_backbone(stage.path, method.backbone, asdict(eval_view))
    products = save_head(stage.path, method.head, train_set.classes)
    scores = top1_of(method, test_set, eval_view, config)
    how = {"split": config.evaluate, "start": str(folder or "random"), "frozen": method_config.frozen}
    how |= {"unfreeze_after_epoch": method_config.unfreeze_after_epoch, "epochs": config.train.epochs}
    result = {"top1": scores.pop("top1"), **figures, "engine": loader.engine, "protocol": {**how, **scores}}
    return result, ["backbone.safetensors", "backbone.json", *products]


def val_monitor(
    method: Method, val_set: Dataset, view: View, config: FinetuneConfig
) -> Callable[[nn.Module], dict[str, float]]:
    return lambda _: {"val_top1": top1_of(method, val_set, view, config)["top1"]}


def main(config: FinetuneConfig) -> None:
    distributed.initialize(config.train.device)
    folder, inputs = None, {}
    if config.input != "none":
        config.run, folder = find_input(config.runs, config.run, config.input, "pretrain")
        inputs = backbone_files(folder)
        config.data = config.data or saved_group(folder, "data", DATA)
    if config.data is None:
        raise ValueError(f"data: expected data=<name> with input=none (known: {', '.join(sorted(DATA))})")
    name = config.method.name, config.data.name
    run_stage(config, name, inputs, lambda stage: finetune(config, folder, stage))


if __name__ == "__main__":
    methods = {name: found.Config for name, found in classes_in(METHODS).items()}
    launch(main, FinetuneConfig, {"method": methods, "data": DATA})
