"""CLIP: open_clip's loss and gradients on the same towers, the scale's bounds, a frozen backbone, what is saved."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("open_clip")

from ssl_fast.data.views import Batch
from ssl_fast.methods.pretrain.clip import CLIP
from ssl_fast.models.text import TextConfig
from ssl_fast.models.towers import load_towers
from tests.methods.pretrain.open_clip_towers import DIM, differences, example, make, peer
from tests.methods.pretrain.oracles import record
from tests.train.runs import make_method, train_losses

TEXT = TextConfig(width=32, layers=2, heads=2, context_length=10, vocab_size=1024)


def test_a_first_step_is_open_clips() -> None:
    from open_clip.loss import ClipLoss

    method = make(CLIP, TEXT)
    loss, gradient = differences(method, peer(method, math.log(1 / 0.07), None), ClipLoss())
    record("clip", loss, gradient)
    assert loss <= 1e-5 and gradient <= 1e-5


def test_first_losses() -> None:
    runs = [train_losses(make_method("clip"), batch_size=12, epochs=1) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] == pytest.approx(GOLDEN, rel=1e-5)


GOLDEN = [4.088405132293701, 3.13988995552063, 2.968341827392578, 2.711810827255249, 2.7013254165649414]


@pytest.mark.parametrize(("log_scale", "expected"), [(9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)])
def test_the_scale_stays_between_1_and_100(log_scale: float, expected: float) -> None:
    method = make(CLIP, TEXT)
    with torch.no_grad():
        method.log_scale.fill_(log_scale)
    method.after_step(0.0)
    assert method.log_scale.item() == pytest.approx(expected)


def test_a_frozen_backbone_keeps_weights_and_statistics() -> None:
    method = make(CLIP, TEXT, freeze_backbone=True)
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    projection = method.image_projection.weight.detach().clone()
    method(example(method), 0.0)[1]["loss"].backward()
    optimizer.step()
    assert not method.backbone.training and method.text_tower.training
    assert all(torch.equal(before[name], value) for name, value in method.backbone.state_dict().items())
    assert all(p.grad is None for p in method.backbone.parameters())
    assert not torch.equal(projection, method.image_projection.weight)
    assert all(p.grad is not None for p in method.text_tower.parameters())


def test_what_is_saved_gives_the_same_embeddings(tmp_path: Path) -> None:
    method = make(CLIP, TEXT).eval()
    batch = example(method)
    assert method.save(tmp_path) == ["towers.safetensors", "towers.json"]
    projection, tower = load_towers(tmp_path)
    assert tower.config == TEXT and projection.out_features == DIM
    rows = method.embed(batch)
    assert torch.equal(rows["text"], tower(batch.extras["tokens"]))
    assert torch.equal(rows["image"], projection(method.backbone(batch.views[0])))


def test_errors_name_the_setting() -> None:
    with pytest.raises(ValueError, match=r"expected dim >= 1 and 1 <= scale <= 100, got 16, 200"):
        make(CLIP, TEXT, scale=200)
    with pytest.raises(ValueError, match=r"text.width: expected a multiple of text.heads=3, got 32"):
        make(CLIP, replace(TEXT, heads=3))
    method = make(CLIP, TEXT)
    batch = example(method)
    with pytest.raises(ValueError, match=r"expected tokens of captions, \[N, L\] in batch.extras, got none"):
        method.embed(Batch(batch.views, None, batch.index))
