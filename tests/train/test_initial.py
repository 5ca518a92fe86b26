"""A run that starts from another one: the whole method comes along, what does not fit stays, damage is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssl_fast.methods.base import Method
from ssl_fast.train.checkpoint import Checkpoints
from ssl_fast.train.initial import find_initial, start_from
from tests.train.runs import make_method


def saved(method: Method, folder: Path, step: int = 7) -> Path:
    Checkpoints(folder / "checkpoints").save(step, {"step": step, "method": method.state_dict()})
    return folder / "checkpoints"


def other(name: str, seed: int = 1, norm: str = "group") -> Method:
    """The method with all of its tensors different from what `make_method` gives."""
    method = make_method(name, norm)
    torch.manual_seed(seed)
    for tensor in method.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor, dtype=torch.float32))
    return method


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_heads_teacher_and_queue_come_along(tmp_path: Path, name: str) -> None:
    source, method = other(name), make_method(name)
    report = start_from(method, saved(source, tmp_path))
    assert report.missing == report.unexpected == ()
    for key, tensor in source.state_dict().items():
        assert torch.equal(method.state_dict()[key], tensor), key
    assert any(key.startswith("teacher.") for key in report.matched)


def test_what_the_methods_do_not_share_stays_and_is_named(tmp_path: Path) -> None:
    source, method = other("simclr"), make_method("byol")
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    report = start_from(method, saved(source, tmp_path))
    assert all(name.startswith(("backbone.", "projector.")) for name in report.matched)
    assert any(name.startswith("predictor.") for name in report.missing)
    for name, tensor in method.state_dict().items():
        expected = source.state_dict()[name] if name in report.matched else before[name]
        assert torch.equal(tensor, expected), name


def test_another_backbone_is_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    method = make_method("simclr")
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    source = saved(other("simclr", norm="batch"), tmp_path)
    state = Checkpoints(source).load()[0]  # type: ignore[index]
    state["method"] = {name.replace("layer", "stage"): tensor for name, tensor in state["method"].items()}
    Checkpoints(source).save(8, state)
    with pytest.raises(ValueError, match=r"init: .*step_00000008 fills \d+ of the backbone's \d+ tensors"):
        start_from(method, source)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    first, second = other("simclr", seed=1), other("simclr", seed=2)
    saved(first, tmp_path, 1)
    folder = saved(second, tmp_path, 2)
    damage(folder / "step_00000002" / "state.pt")
    method = make_method("simclr")
    start_from(method, folder)
    assert torch.equal(method.state_dict()["projector.0.weight"], first.state_dict()["projector.0.weight"])
    damage(folder / "step_00000001" / "state.pt")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        start_from(method, folder)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_its_folder_or_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = saved(make_method("simclr"), tmp_path / "runs" / "a" / "pretrain")
    for init in ("a", "runs/a", "runs/a/pretrain", str(tmp_path / "runs" / "a")):
        assert find_initial("runs", init).resolve() == expected
    with pytest.raises(ValueError, match=r"init: no checkpoint in runs/b/pretrain/checkpoints or .*backbone.weights"):
        find_initial("runs", "b")
