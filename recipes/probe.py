"""Stage 2, probe: what a frozen representation is worth, as weighted kNN and as a linear classifier.

    python recipes/probe.py run=my-run
    python recipes/probe.py run=my-run stage=probe_logistic linear.solver=logistic
    python recipes/probe.py input=runs/my-run/pretrain data=image_folder data.root=other/images run=elsewhere

Reads backbone.safetensors + backbone.json of a pretrain (or finetune) stage and, unless `data=` names another, that
stage's data set. Writes result.json, every score with its protocol, and head.safetensors + classes.json, the linear
classifier, into runs/<run>/probe. What is swept is chosen on the validation split, or on held-out training samples.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_fast import distributed
from ssl_fast.config import launch
from ssl_fast.data.datasets import labelled_dataset, open_dataset, splits
from ssl_fast.eval.features import Features, extract_features
from ssl_fast.eval.knn import KNNConfig, knn_accuracy
from ssl_fast.eval.linear_probe import LinearProbeConfig, linear_probe
from ssl_fast.models.backbone import load_backbone
from ssl_fast.models.classifier import save_head
from ssl_fast.train.inputs import backbone_files, check_channels, data_options, evaluation_view, find_input, saved_group
from ssl_fast.train.recipe import run_stage
from ssl_fast.train.run import Stage

DATA = data_options()


@dataclass
class ProbeConfig:
    """Everything that `--help` lists."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"data": None}])
    data: Any = None  # the input's own data set
    knn: KNNConfig = field(default_factory=KNNConfig)
    linear: LinearProbeConfig = field(default_factory=LinearProbeConfig)
    evaluate: str = "test"  # the split that the scores are of; val while settings are being chosen
    batch_size: int = 256
    precision: str = "fp32"  # of the backbone: fp32 | bf16
    clips: int = 0  # of a video, at even places, whose features are averaged; 0: as after pretraining
    device: str = "auto"
    input: str = ""  # a stage of the run ("finetune"), or a stage's folder; "": the run's pretrain stage
    runs: str = "runs"
    run: str = ""  # "": the input's run
    stage: str = "probe"


def probe(config: ProbeConfig, folder: Path, stage: Stage) -> tuple[dict[str, Any], list[str]]:
    backbone, preprocessing = load_backbone(folder)
    view = evaluation_view(preprocessing, config.clips)
    device = distributed.initialize(config.device)

    def features(split: str) -> Features:
        dataset = labelled_dataset(config.data, split)
        check_channels(dataset, view)
        return extract_features(
            backbone,
            dataset,
            view,
            batch_size=config.batch_size,
            device=device,
            precision=config.precision,
            loader=config.data,
        ).labelled()

    train, test = features("train"), features(config.evaluate)
    val = features("val") if "val" in splits(config.data) and config.evaluate != "val" else None
    knn = knn_accuracy(train.h, train.labels, test.h, test.labels, config.knn.k, config.knn.temperature)
    linear, head = linear_probe(
        train.h,
        train.labels,
        test.h,
        test.labels,
        config.linear,
        val_h=val.h if val else None,
        val_y=val.labels if val else None,
    )
    classes = open_dataset(config.data, "train").classes[: head.out_features]
    result = {
        "knn_top1": knn["top1"],
        "linear_top1": linear["top1"],
        "knn": knn,
        "linear": linear,
        "features": train.protocol | {"skipped_train": train.skipped, "skipped_test": test.skipped},
        "data": {"name": config.data.name, "split": config.evaluate},
    }
    return result, save_head(stage.path, head, classes)


def main(config: ProbeConfig) -> None:
    config.run, folder = find_input(config.runs, config.run, config.input, "pretrain")
    config.data = config.data or saved_group(folder, "data", DATA)
    run_stage(config, ("probe", config.data.name), backbone_files(folder), lambda stage: probe(config, folder, stage))


if __name__ == "__main__":
    launch(main, ProbeConfig, {"data": DATA})
