"""Where a later stage finds what it reads."""

from dataclasses import asdict
from pathlib import Path

import pytest

from ssl_fast.data.views import View
from ssl_fast.train.inputs import data_options, evaluation_view, find_input, saved_group


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("a/pretrain", "a/finetune_fold0", "b/pretrain"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    return tmp_path / "runs"


def test_the_previous_stage_of_the_run(runs: Path) -> None:
    assert find_input(runs, "a", "", "pretrain") == ("a", runs / "a" / "pretrain")


def test_another_stage_of_the_run(runs: Path) -> None:
    assert find_input(runs, "a", "finetune_fold0", "pretrain") == ("a", runs / "a" / "finetune_fold0")


def test_a_folder_names_the_run_unless_one_is_given(runs: Path) -> None:
    folder = str(runs / "b" / "pretrain")
    assert find_input(runs, "", folder, "pretrain") == ("b", Path(folder))
    assert find_input(runs, "mine", folder, "pretrain") == ("mine", Path(folder))


def test_what_is_missing_is_named(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"got neither; .* has a, b$"):
        find_input(runs, "", "", "pretrain")
    with pytest.raises(ValueError, match=r"input: no folder .*c/pretrain; run the stage pretrain first"):
        find_input(runs, "c", "", "pretrain")


def test_the_data_of_the_earlier_stage(runs: Path) -> None:
    options = data_options()
    folder = runs / "a" / "pretrain"
    (folder / "config.yaml").write_text("data: {name: arrays, path: x.npz, limit: 7, workers: 3, gone: 1}\n")
    data = saved_group(folder, "data", options)
    assert (data.name, data.path, data.limit, data.workers) == ("arrays", "x.npz", 7, 3)
    (folder / "config.yaml").write_text("data: {name: stranger}\n")
    with pytest.raises(ValueError, match=r"data: .* names none of arrays, .*: give data=\.\.\."):
        saved_group(folder, "data", options)
    with pytest.raises(ValueError, match=r"input: .*config.yaml cannot be read"):
        saved_group(runs / "b" / "pretrain", "data", options)


def test_the_view_comes_back_from_plain_values() -> None:
    view = View("eval", size=24, crop="center", flip=0.0, mean=(0.1,), std=(0.2,))
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(view).items()}
    assert evaluation_view({**plain, "channels": 1}) == view
