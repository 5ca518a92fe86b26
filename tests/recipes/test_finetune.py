"""recipes/finetune.py on real image patches: frozen, unfrozen on the way, and from scratch."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_fast.data.datasets import open_dataset
from ssl_fast.eval.features import extract_features
from ssl_fast.models.backbone import load_backbone, save_backbone
from ssl_fast.models.classifier import Classifier, load_head
from ssl_fast.train.inputs import evaluation_view

HIGH = "method.optimizer.lr=40"  # an untrained backbone in evaluation mode has features of about 0.03
SHORT = ("train.epochs=2", "train.batch_size=64", "train.precision=fp32")


def top1(stage: Path, patches: Any) -> float:
    """Test accuracy, from the files of the stage alone."""
    backbone, preprocessing = load_backbone(stage)
    head, classes = load_head(stage)
    assert len(classes) == 16
    model = Classifier(backbone, head)
    logits = extract_features(model, open_dataset(patches, "test"), evaluation_view(preprocessing))
    assert logits.labels is not None
    return (logits.h.argmax(1) == logits.labels).double().mean().item()


def test_frozen_trains_the_head_and_leaves_every_bit_of_the_backbone(
    folder: Path, patches: Any, run_recipe: Any
) -> None:
    result = run_recipe("finetune", "run=r", "stage=finetune_head", "method.frozen=true", *SHORT, HIGH, folder=folder)
    before, _ = load_backbone(folder / "runs/r/pretrain")
    after, _ = load_backbone(folder / "runs/r/finetune_head")
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    assert result["top1"] == top1(folder / "runs/r/finetune_head", patches)
    assert result["top1"] > 1.5 / 16
    assert result["protocol"]["frozen"] is True


def test_unfrozen_after_an_epoch(folder: Path, patches: Any, run_recipe: Any) -> None:
    result = run_recipe("finetune", "run=r", "method.unfreeze_after_epoch=1", *SHORT, folder=folder)
    before, _ = load_backbone(folder / "runs/r/pretrain")
    after, _ = load_backbone(folder / "runs/r/finetune")
    same = [name for name, value in before.state_dict().items() if torch.equal(value, after.state_dict()[name])]
    assert not [name for name in same if "conv" in name or "running" in name]
    batches = next(value for name, value in after.state_dict().items() if name.endswith("num_batches_tracked"))
    assert batches.item() == 320 // 64  # batch statistics moved in the second epoch alone
    assert result["top1"] == top1(folder / "runs/r/finetune", patches)


def test_adapters_on_a_runs_backbone(folder: Path, patches: Any, run_recipe: Any) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    before, preprocessing = load_backbone(folder / "runs/r/pretrain")
    for stage in range(1, 5):  # at zero, as they start, they would hide the convolutions
        torch.nn.init.ones_(before.model.get_submodule(f"layer{stage}.0.bn2").weight)
    save_backbone(folder / "runs/lora/pretrain", before, preprocessing)
    shutil.copy(folder / "runs/r/pretrain/config.yaml", folder / "runs/lora/pretrain")
    result = run_recipe("finetune", "run=lora", "backbone.lora_rank=2", *SHORT, folder=folder)
    after, _ = load_backbone(folder / "runs/lora/finetune")
    changed = {name for name, p in before.named_parameters() if not torch.equal(p, after.get_parameter(name))}
    assert changed == {name for name, _ in before.named_parameters() if "layer" in name and ".conv" in name}
    update = after.model.layer4[0].conv2.weight - before.model.layer4[0].conv2.weight
    assert torch.linalg.matrix_rank(update.detach().flatten(1), rtol=1e-2) == 2
    assert result["top1"] == top1(folder / "runs/lora/finetune", patches)


def test_from_scratch(folder: Path, patches: Any, run_recipe: Any) -> None:
    data = [f"data.{name}={getattr(patches, name)}" for name in ("num_train", "num_val", "num_test")]
    small = ("backbone.cifar_stem=true", "backbone.width=8", "backbone.depth='1,1,1,1'", "size=32")
    result = run_recipe("finetune", "input=none", "run=s", "data=photo_patches", *data, *small, *SHORT, folder=folder)
    assert result["protocol"]["start"] == "random"
    assert result["top1"] == top1(folder / "runs/s/finetune", patches)


def test_a_policy_is_applied_by_torchvision(folder: Path, patches: Any, run_recipe: Any) -> None:
    data = [f"data.{name}={getattr(patches, name)}" for name in ("num_train", "num_val", "num_test")]
    small = ("backbone.cifar_stem=true", "backbone.width=8", "backbone.depth='1,1,1,1'", "size=32")
    policy = ("method.view.policy=randaugment", "data.color=true")
    given = ("input=none", "run=p", "data=photo_patches", *data, *small, *SHORT, *policy)
    assert run_recipe("finetune", *given, folder=folder)["engine"] == "torchvision"
    said = run_recipe("finetune", *given, "run=q", "data.engine=fused", folder=folder, code=2)
    assert said == "error: data.engine: fused cannot be used: policy=randaugment needs the torchvision engine"


def test_errors_fit_in_a_sentence_before_the_training(folder: Path, run_recipe: Any) -> None:
    def said(*settings: str) -> str:
        line = run_recipe("finetune", *settings, *SHORT, "stage=wrong", folder=folder, code=2)
        assert not (folder / "runs/r/wrong/checkpoints").exists()
        return str(line)

    assert said("input=none").startswith("error: data: expected data=<name> with input=none (known: arrays, ")
    wrong = "error: method.num_classes: expected 0 or the data set's 16, got 7"
    assert said("run=r", "method.num_classes=7") == wrong
    images = np.zeros((64, 32, 32, 3), np.uint8)
    np.savez(folder / "no_y_test.npz", x_train=images, y_train=np.arange(64) % 2, x_test=images[:8])
    data = ("run=r", "data=arrays", "data.path=no_y_test.npz")
    assert said(*data) == "error: data: expected one label a sample, and the test split of arrays has not"
    np.savez(folder / "colour.npz", x_train=images, y_train=np.arange(64) % 2, x_test=images, y_test=np.arange(64) % 2)
    assert said("run=r", "data=arrays", "data.path=colour.npz").startswith(
        "error: data: the backbone takes 1 channels, got 3; data.color=false changes that"
    )
    vit = ("input=none", "run=r", "data=photo_patches", "data.num_train=320", "backbone.name=test_vit", "size=24")
    assert said(*vit, "backbone.image_size=32").startswith("error: views of 24 px cannot be cut into patches of 16")
