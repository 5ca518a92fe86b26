"""Stage 1, pretrain: images in, a representation out.

    python recipes/pretrain.py +preset=photo_patches
    python recipes/pretrain.py method=moco data=cifar10 backbone.cifar_stem=true train.epochs=50
    torchrun --nproc-per-node 8 recipes/pretrain.py data=image_folder data.root=images train.batch_size=4096

Reads a data set. Writes backbone.safetensors + backbone.json, neighbours.png and result.json into runs/<run>/pretrain,
and with method=clip or siglip towers.safetensors + towers.json, for zero_shot.
The same command again resumes, or says that it is finished.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ssl_fast import distributed
from ssl_fast.config import classes_in, find, launch
from ssl_fast.data.datasets import open_dataset
from ssl_fast.data.loader import Loader
from ssl_fast.data.views import View
from ssl_fast.eval.baselines import Pair, feature_pair, knn_scores, raw_pair
from ssl_fast.eval.knn import KNNConfig, knn_protocol
from ssl_fast.eval.monitor import MonitorConfig, knn_monitor
from ssl_fast.eval.neighbours import save_neighbours
from ssl_fast.models.backbone import BackboneConfig, build_backbone, save_backbone
from ssl_fast.models.vit import check_sizes
from ssl_fast.train.checkpoint import Checkpoints
from ssl_fast.train.initial import find_initial, start_from
from ssl_fast.train.inputs import data_options, new_evaluation_view
from ssl_fast.train.recipe import run_stage
from ssl_fast.train.run import Stage
from ssl_fast.train.tracking import Tracker
from ssl_fast.train.trainer import TrainConfig, Trainer

METHODS = "ssl_fast.methods.pretrain"


@dataclass
class PretrainConfig:
    """Everything that `--help` lists."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"method": "simclr"}, {"data": "photo_patches"}])
    method: Any = None
    data: Any = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    knn: KNNConfig = field(default_factory=KNNConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    init: str = ""  # a run, or a stage's folder: the weights, heads, teacher, queue this run starts from
    evaluate: str = "test"  # the split that the final kNN is measured on; val while settings are being chosen
    eval_size: int = 0  # side of the images that features are taken of, pixels; 0: the first view's
    eval_clips: int = 5  # clips of a video, at even places, whose features are averaged
    runs: str = "runs"
    run: str = ""  # "": made from method, data and the config's hash
    stage: str = "pretrain"


def pretrain(config: PretrainConfig, inputs: dict[str, Path], stage: Stage) -> tuple[dict[str, Any], list[str]]:
    method_class = find(METHODS, config.method.name)
    train_set = open_dataset(config.data, "train", method_class.tokenizer(config.method))
    test_set = open_dataset(config.data, config.evaluate)
    if has_classes := train_set.has_classes and test_set.has_classes:
        config.knn.check(int((train_set.labels >= 0).sum()))
    backbone_config = replace(config.backbone, in_channels=train_set.channels)
    method_config = replace(config.method, view=fitted(config.method.view, train_set))
    views = tuple(replace(v, mean=train_set.mean, std=train_set.std) for v in method_class.views(method_config))
    eval_view = new_evaluation_view(views[0], train_set, config.eval_size or views[0].size, config.eval_clips)

    torch.manual_seed(config.train.seed)
    method = method_class(method_config, build_backbone(backbone_config))
    check_sizes(method.backbone.model, {eval_view.size, *(view.size for view in views)})
    loader = Loader(
        train_set,
        views,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        shuffle=True,
        drop_last=True,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        device=distributed.initialize(config.train.device),
    )
    trainer = Trainer(
        method,
        loader,
        config.train,
        checkpoints=Checkpoints(stage.path / "checkpoints"),
        monitor=knn_monitor(train_set, test_set, eval_view, config.monitor, device=loader.device, loader=config.data),
    )
    kinds: dict[str, Pair | None] = {}
    if distributed.rank() == 0:
        kinds["raw_pixels"] = raw_pair((train_set, test_set))
        kinds["random_init"] = feature_pair(method.backbone, (train_set, test_set), eval_view, config.data)
    if config.init:
        start_from(method, inputs["init"])
    start = trainer.resume()
    train = config.train
    tracker = Tracker(stage.path, train.tensorboard, train.wandb, stage.path.parent.name, asdict(config), start)
    figures = trainer.fit(tracker)
    tracker.close()
    if distributed.rank():
        return {}, []
    kinds["learned"] = feature_pair(method.backbone, (train_set, test_set), eval_view, config.data)
    save_backbone(stage.path, method.backbone, asdict(eval_view))
    products = ["backbone.safetensors", "backbone.json", "neighbours.png", *method.save(stage.path)]
    queries = torch.linspace(0, len(test_set) - 1, 12).long().tolist()
    shown = {name.replace("_", " "): found for name, found in kinds.items() if found}
    save_neighbours(stage.path / "neighbours.png", train_set, test_set, shown, queries)
    protocol = knn_protocol(config.knn, "backbone feature h") | {"split": config.evaluate}
    result = {
        **knn_scores(kinds, config.knn, has_classes),
        **figures,
        "engine": loader.engine,
        "knn_protocol": protocol,
    }
    return result, products


def fitted(view: View, data: Any) -> View:
    """The view, where all images have one size, of that size unless one was set; local views follow it."""
    return replace(view, size=view.size if view.size != View.size or data.arrays is None else data.arrays.shape[1])


def main(config: PretrainConfig) -> None:
    distributed.initialize(config.train.device)
    inputs = {"init": find_initial(config.runs, config.init)} if config.init else {}
    run_stage(config, (config.method.name, config.data.name), inputs, lambda stage: pretrain(config, inputs, stage))


if __name__ == "__main__":
    groups = {"method": {name: cls.Config for name, cls in classes_in(METHODS).items()}, "data": data_options()}
    launch(main, PretrainConfig, groups, Path(__file__).parent / "presets" / "pretrain")
