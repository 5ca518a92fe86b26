"""What a later stage starts from: the stage before it, its backbone, and the data set that it used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from typing import Any

from ssl_fast.config import classes_in
from ssl_fast.data.captions import CaptionsConfig
from ssl_fast.data.dataset import Dataset
from ssl_fast.data.loader import LoaderConfig
from ssl_fast.data.views import View

BACKBONE_FILES = ("backbone.safetensors", "backbone.json")


def data_options() -> dict[str, type]:
    """The values of `data=`: a data set's options, its captions' and the loader's, side by side in one dataclass."""
    return {
        name: make_dataclass(f"{name}_data", [], bases=(found.Config, CaptionsConfig, LoaderConfig))  # type: ignore[attr-defined]
        for name, found in classes_in("ssl_fast.data.datasets").items()
    }


def find_input(runs: str | Path, run: str, given: str, previous: str) -> tuple[str, Path]:
    """The run's name and the folder of the stage that a stage reads.

    Args:
        runs: folder of all runs.
        run: the run's name, or "" to take it from `given`.
        given: a stage of the same run, a stage's folder, or "" for the stage `previous`.
        previous: the stage that is read when nothing else is said.

    Raises:
        ValueError: neither a run nor an input is named, or there is no such folder.
    """
    if not run and not given:
        known = sorted(path.parent.name for path in Path(runs).glob(f"*/{previous}"))
        hint = f"; {runs} has {', '.join(known)}" if known else ""
        raise ValueError(f"run: expected a run's name (run=...) or a stage's folder (input=...), got neither{hint}")
    candidates = [Path(runs) / run / (given or previous)] if run else []
    candidates += [Path(given)] if given else []
    for folder in candidates:
        if folder.is_dir():
            return run or folder.resolve().parent.name, folder
    raise ValueError(f"input: no folder {' or '.join(map(str, candidates))}; run the stage {previous} first")


def backbone_files(folder: Path) -> dict[str, Path]:
    """What a stage that reads a backbone depends on, by name."""
    return {name: folder / name for name in BACKBONE_FILES}


def evaluation_view(preprocessing: Mapping[str, Any], clips: int = 0) -> View:
    """The view that a saved backbone is evaluated with.

    Args:
        preprocessing: what was saved beside it.
        clips: of a video, whose features are averaged; 0: as many as were saved.
    """
    view = View(**{item.name: preprocessing[item.name] for item in fields(View) if item.name in preprocessing})
    return replace(view, place="even", clips=clips) if clips else view


def new_evaluation_view(view: View, dataset: Dataset, size: int, clips: int = 1) -> View:
    """How a backbone that is trained on `view` is evaluated: on the centre, nothing random, clips at even places.

    Args:
        view: of the training.
        dataset: whose normalisation is taken.
        size: side, pixels.
        clips: of each video.
    """
    kind = {name: getattr(view, name) for name in ("kind", "frames", "stride")}
    fixed: dict[str, Any] = {"crop": "center", "flip": 0.0, "place": "even", "clips": clips if dataset.videos else 1}
    return View("eval", **kind, **fixed, size=size, mean=dataset.mean, std=dataset.std)


def check_channels(dataset: Dataset, view: View) -> None:
    """Raises ValueError unless images have the channels of those that the backbone was trained on."""
    if dataset.channels != len(view.mean):
        hint = f"; data.color={'true' if len(view.mean) == 3 else 'false'} changes that of image files"
        raise ValueError(f"data: the backbone takes {len(view.mean)} channels, got {dataset.channels}{hint}")


def saved_group(folder: Path, group: str, options: Mapping[str, type]) -> Any:
    """The configuration that a stage had for a group ("data"), as an instance of its option's dataclass.

    Settings that the dataclass no longer has are dropped.

    Raises:
        ValueError: the folder is not a stage's, or its configuration of the group is not among the options.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"input: {folder}/config.yaml cannot be read: expected the folder of a stage") from error
    saved = config.get(group) if isinstance(config, dict) else None
    if not isinstance(saved, dict) or saved.get("name") not in options:
        raise ValueError(f"{group}: {folder}/config.yaml names none of {', '.join(sorted(options))}: give {group}=...")
    option: Any = options[saved["name"]]
    known = {item.name for item in fields(option)}
    return option(**{key: value for key, value in saved.items() if key in known})
