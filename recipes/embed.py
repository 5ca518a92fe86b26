"""Features of images or videos: a folder, a CSV table of paths, or another data set, to .npz or parquet, with names.

    python recipes/embed.py run=my-run data.root=photos
    python recipes/embed.py run=my-run data=image_csv data.path=photos.csv data.column=file format=parquet
    python recipes/embed.py run=my-run data=video_folder data.root=videos clips=10
    python recipes/embed.py run=my-run data=cifar10 split=test stage=embed_cifar10_test

Reads backbone.safetensors + backbone.json of a pretrain (or finetune) stage and the images. Writes into
runs/<run>/embed: features.npz (`h` [N, F] float32, `names` [N], `index` [N], and `labels` [N] + `classes` where there
are labels) or features.parquet (columns name, index, h, and label), result.json, and quarantine.jsonl, the files that
could not be decoded, with reasons, if there are any.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ssl_fast import distributed
from ssl_fast.config import launch
from ssl_fast.data.datasets import open_dataset
from ssl_fast.eval.features import extract_features
from ssl_fast.models.backbone import load_backbone
from ssl_fast.train.inputs import backbone_files, data_options, evaluation_view, find_input
from ssl_fast.train.recipe import run_stage
from ssl_fast.train.run import Stage

DATA = data_options()


@dataclass
class EmbedConfig:
    """Everything that `--help` lists."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"data": "image_folder"}])
    data: Any = None
    split: str = "all"  # all | train | val | test
    format: str = "npz"  # npz | parquet
    batch_size: int = 256
    precision: str = "fp32"  # of the backbone: fp32 | bf16
    clips: int = 0  # of a video, at even places, whose features are averaged; 0: as after pretraining
    device: str = "auto"
    input: str = ""  # a stage of the run ("finetune"), or a stage's folder; "": the run's pretrain stage
    runs: str = "runs"
    run: str = ""  # "": the input's run
    stage: str = "embed"


def embed(config: EmbedConfig, folder: Path, stage: Stage) -> tuple[dict[str, Any], list[str]]:
    backbone, preprocessing = load_backbone(folder)
    view = evaluation_view(preprocessing, config.clips)
    options: dict[str, Any] = {}
    if hasattr(config.data, "quarantine"):  # image files: one record for this stage, made anew
        (stage.path / "quarantine.jsonl").unlink(missing_ok=True)
        options["quarantine"] = str(stage.path / "quarantine.jsonl")
    if hasattr(config.data, "color"):
        options["color"] = len(view.mean) == 3  # what the backbone takes
    dataset = open_dataset(replace(config.data, **options), config.split)
    found = extract_features(
        backbone,
        dataset,
        view,
        batch_size=config.batch_size,
        device=distributed.initialize(config.device),
        precision=config.precision,
        loader=config.data,
    )
    index = found.index.numpy()
    names = found.names or [str(i) for i in index]
    columns = {"h": found.h.numpy(), "names": np.array(names), "index": index}
    if found.labels is not None:
        columns |= {"labels": found.labels.numpy(), "classes": np.array(dataset.classes)}
    product = f"features.{config.format}"
    (save_npz if config.format == "npz" else save_parquet)(stage.path / product, columns)
    quarantined = len(dataset.quarantine) if options.get("quarantine") else 0
    result = {
        "num_images": len(found),
        "num_features": found.h.shape[1],
        "quarantined": quarantined,
        "features": found.protocol,
        "data": {"name": config.data.name, "split": config.split, "fingerprint": dataset.fingerprint()},
    }
    return result, [product, *(["quarantine.jsonl"] if quarantined else [])]


def save_npz(path: Path, columns: dict[str, Any]) -> None:
    np.savez(path, **columns)


def save_parquet(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    h = columns["h"]
    table = {
        # a name that is not Unicode cannot be stored: what is wrong in it becomes a question mark
        "name": [name.encode(errors="replace").decode() for name in columns["names"].tolist()],
        "index": columns["index"],
        "h": pyarrow.FixedSizeListArray.from_arrays(h.reshape(-1), h.shape[1]),
    }
    if "labels" in columns:
        table["label"] = named(columns["labels"], columns["classes"])
    pyarrow.parquet.write_table(pyarrow.table(table), path)


def named(labels: np.ndarray, classes: np.ndarray) -> list[Any]:
    """The class of each sample, None where it is not known; of several a sample, [N, C], a list each."""
    if labels.ndim == 2:
        return [classes[row > 0].tolist() for row in labels]
    return [str(classes[label]) if label >= 0 else None for label in labels.tolist()]


def main(config: EmbedConfig) -> None:
    if config.format not in ("npz", "parquet"):
        raise ValueError(f"format: expected npz or parquet, got {config.format!r}")
    config.run, folder = find_input(config.runs, config.run, config.input, "pretrain")
    run_stage(config, ("embed", config.data.name), backbone_files(folder), lambda stage: embed(config, folder, stage))


if __name__ == "__main__":
    launch(main, EmbedConfig, {"data": DATA})
