"""Weights from files: prefixes, the 90 % rule, the report, and files that are not weights."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ssl_fast.models.backbone import BackboneConfig, build_backbone
from ssl_fast.models.weights import load_weights


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".ckpt", ".pth.tar", ".bin"])
def test_wrapped_weights_are_found(tmp_path, suffix):
    source = network(1)
    state = {f"module.backbone.{name}": tensor for name, tensor in source.state_dict().items()}
    state["module.backbone.5.weight"] = torch.zeros(3)
    state["module.projector.weight"] = torch.zeros(3)
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"epoch": 3, "state_dict": state}, path)
    model = network(2)
    report = load_weights(model, path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values(), strict=True)
    )
    assert (len(report.matched), report.missing, report.unexpected) == (13, (), ("5.weight",))
    where = "'state_dict.module.backbone'" if suffix != ".safetensors" else "'module.backbone'"
    said = f"13 matched, 0 missing, 1 unexpected; unexpected: 5.weight (from {where}, names of timm)"
    assert str(report) == said


def test_one_missing_and_one_of_another_shape(tmp_path):
    state = network(1).state_dict()
    state["4.weight"] = torch.zeros(5, 8)  # 1 of 12: within the tenth that may be missing
    torch.save(state, tmp_path / "a.pth")
    report = load_weights(network(), tmp_path / "a.pth")
    assert report.missing == ("4.weight",)
    del state["0.bias"]  # 2 of 12: too many
    torch.save(state, tmp_path / "b.pth")
    model = network(2)
    with pytest.raises(ValueError, match=r"fills 10 of 12 tensors, at least 90% needed .*missing: 0.bias, 4.weight"):
        load_weights(model, tmp_path / "b.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), network(2).state_dict().values(), strict=True)
    )


def test_backbone_option(tmp_path):
    config = BackboneConfig(cifar_stem=True, width=8, depth="1,1,1,1")
    source = build_backbone(config)
    torch.save({f"backbone.{name}": tensor for name, tensor in source.state_dict().items()}, tmp_path / "a.pth")
    config.weights = str(tmp_path / "a.pth")
    backbone = build_backbone(config)
    assert torch.equal(backbone.model.conv1.weight, source.model.conv1.weight)
    assert backbone.weights_report is not None and backbone.weights_report.missing == ()


def test_folders_of_a_run(tmp_path):
    source = network(1)
    stage, checkpoint = tmp_path / "pretrain", tmp_path / "pretrain" / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    save_file(source.state_dict(), stage / "backbone.safetensors")
    state = {f"backbone.model.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"method": state, "step": 1}, checkpoint / "state.pt")
    for folder in (stage, checkpoint):
        model = network(2)
        load_weights(model, folder)
        assert torch.equal(model[0].weight, source[0].weight)


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles_do_not_run(tmp_path, capsys):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"weight": Payload()}))
    torch.save({"weight": Payload()}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(ValueError, match="cannot be read as plain tensors"):
            load_weights(network(), tmp_path / name)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut short"])
def test_other_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        load_weights(network(), tmp_path / name)


def test_refused_before_reading(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_weights(network(), tmp_path / "absent.pth")
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must end in .safetensors, .pth, .pt, .ckpt, .tar, .bin, got 'a.npz'"):
        load_weights(network(), tmp_path / "a.npz")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        load_weights(network(), tmp_path / "list.pth")
