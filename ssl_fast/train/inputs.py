"""What a later stage starts from: the stage before it, and the data set that the stage before it used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any


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
        raise ValueError(
            f"run: expected the name of a run (run=...) or a stage's folder (input=...), got neither{hint}"
        )
    candidates = [Path(runs) / run / (given or previous)] if run else []
    candidates += [Path(given)] if given else []
    for folder in candidates:
        if folder.is_dir():
            return run or folder.resolve().parent.name, folder
    raise ValueError(f"input: no folder {' or '.join(map(str, candidates))}; run the stage {previous} first")


def saved_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a stage.

    Raises:
        ValueError: the folder has none.
    """
    import yaml

    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
    except OSError as error:
        raise ValueError(f"input: {folder} has no config.yaml: expected the folder of a stage") from error
    if not isinstance(config, dict):
        raise ValueError(f"input: {folder}/config.yaml is not the configuration of a stage")
    return config


def saved_group(folder: Path, group: str, options: Mapping[str, type]) -> Any:
    """The configuration that a stage had for a group ("data"), as an instance of its option's dataclass.

    Settings that the dataclass no longer has are dropped.

    Raises:
        ValueError: the stage had none, or one that is not among the options.
    """
    saved = saved_config(folder).get(group)
    name = saved.get("name") if isinstance(saved, dict) else None
    if name not in options:
        raise ValueError(f"{group}: {folder}/config.yaml names none of {', '.join(sorted(options))}: give {group}=...")
    known = {item.name for item in fields(options[name])}
    return options[name](**{key: value for key, value in saved.items() if key in known})
