"""Stage 4, export: a backbone, or backbone and head, as ONNX (fp32, FP16) and TensorRT engines, with its parity report.

    python recipes/export.py run=my-run
    python recipes/export.py run=my-run input=finetune stage=export_finetuned
    python recipes/export.py run=my-run head=probe export.targets=[SM89,SM120] export.max_batch=256

Reads backbone.safetensors + backbone.json of a stage (the run's finetune stage if there is one, else pretrain) and the
head.safetensors + classes.json beside it, or those of the stage `head`. Writes model.onnx, model_fp16.onnx,
model_fp16_<architecture>.engine (where TensorRT or TensorRT-RTX is installed), parity.json, result.json and,
with torchvision=true, torchvision.pth into runs/<run>/export. The input of every file is normalised images; how to
normalise is in the ONNX files' metadata.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssl_fast.config import launch
from ssl_fast.data.datasets import open_dataset
from ssl_fast.data.loader import Loader
from ssl_fast.export import ExportConfig, export_model
from ssl_fast.export.parity import BATCHES
from ssl_fast.models.backbone import load_backbone
from ssl_fast.models.classifier import CLASSES, WEIGHTS, Classifier, load_head
from ssl_fast.models.torchvision_weights import save_torchvision
from ssl_fast.train.inputs import backbone_files, check_channels, data_options, evaluation_view, find_input, saved_group
from ssl_fast.train.recipe import run_stage
from ssl_fast.train.run import Stage

DATA = data_options()


@dataclass
class ExportStageConfig:
    """Everything that `--help` lists."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"data": None}])
    data: Any = None  # the input's own data set
    export: ExportConfig = field(default_factory=ExportConfig)
    head: str = ""  # "": the input's own, if it has one; none: features; a stage of the run ("probe") or its folder
    torchvision: bool = False  # also torchvision.pth, for torchvision.models.<name> of a plain ResNet
    images: str = "data"  # for the parity report: data (the test split) | noise
    input: str = ""  # a stage of the run, or a stage's folder; "": the run's finetune stage, or else pretrain
    runs: str = "runs"
    run: str = ""  # "": the input's run
    stage: str = "export"


def head_folder(config: ExportStageConfig, folder: Path) -> Path | None:
    """Where the head to export is; None exports features."""
    if config.head in ("", "none"):
        return folder if config.head == "" and (folder / WEIGHTS).is_file() else None
    return find_input(config.runs, config.run, config.head, "probe")[1]


def real_images(config: ExportStageConfig, preprocessing: dict[str, Any]) -> Tensor | None:
    """The first test images [8, C, H, W] as evaluation sees them; None asks for noise."""
    if config.images == "noise":
        return None
    dataset = open_dataset(config.data, "test")
    if len(dataset) < max(BATCHES):
        raise ValueError(
            f"images: expected {max(BATCHES)} or more test images, got {len(dataset)}; or use images=noise"
        )
    check_channels(dataset, evaluation_view(preprocessing))
    options = {"batch_size": max(BATCHES), "seed": 0, "shuffle": False, "drop_last": False}
    loader = Loader(dataset, (evaluation_view(preprocessing),), config.data, **options)
    return next(iter(loader.epoch(0))).views[0]


def export(
    config: ExportStageConfig, folder: Path, heads: Path | None, stage: Stage
) -> tuple[dict[str, Any], list[str]]:
    backbone, preprocessing = load_backbone(folder)
    model: nn.Module = backbone
    head, classes = None, []
    if heads:
        head, classes = load_head(heads)
        if head.in_features != backbone.num_features:
            raise ValueError(f"head: {heads} takes {head.in_features} features, {folder} gives {backbone.num_features}")
        model = Classifier(backbone, head)
    torchvisions = [save_torchvision(stage.path, backbone, head)] if config.torchvision else []
    images = real_images(config, preprocessing)
    report = export_model(config.export, model, preprocessing, stage.path, classes=classes, images=images)
    files = [row["file"] for row in (*report["onnx"], *report["engines"])]
    output = "logits" if classes else "feature"
    return {**report, "output": output, "images": config.images}, [*files, *torchvisions, "parity.json"]


def main(config: ExportStageConfig) -> None:
    if config.images not in ("data", "noise"):
        raise ValueError(f"images: expected data or noise, got {config.images!r}")
    config.export.check()
    tuned = bool(config.run) and (Path(config.runs) / config.run / "finetune" / "backbone.json").is_file()
    config.run, folder = find_input(config.runs, config.run, config.input, "finetune" if tuned else "pretrain")
    if config.images == "data":
        config.data = config.data or saved_group(folder, "data", DATA)
    heads = head_folder(config, folder)
    inputs = backbone_files(folder) | ({name: heads / name for name in (WEIGHTS, CLASSES)} if heads else {})
    run_stage(config, ("export", folder.name), inputs, lambda stage: export(config, folder, heads, stage))


if __name__ == "__main__":
    launch(main, ExportStageConfig, {"data": DATA})
