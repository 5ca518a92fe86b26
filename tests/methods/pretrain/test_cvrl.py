"""CVRL: its loss and gradients beside the paper's equation written out, and beside lightly's NTXentLoss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_fast.data.views import Batch
from ssl_fast.methods.pretrain.cvrl import CVRL
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from tests.methods.pretrain.oracles import record

TEMPERATURE = 0.1


def literal(z1: Tensor, z2: Tensor) -> Tensor:
    """Section 3.1, term by term: L = mean over the 2 N clips of -log exp(sim(z_i, z_i') / tau) / sum_{k != i} exp(...).

    Written as the paper has it: for each clip its positive, and in the denominator all 2 N - 1 other clips.
    """
    z = [row / row.norm() for row in torch.cat([z1, z2])]
    n, losses = len(z1), []
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        others = torch.stack([(z[i] @ z[k]) / TEMPERATURE for k in range(2 * n) if k != i])
        losses.append(-((z[i] @ z[positive]) / TEMPERATURE - torch.log(torch.exp(others).sum())))
    return torch.stack(losses).mean()


def lightlys(z1: Tensor, z2: Tensor) -> Tensor:
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    found: Tensor = loss.NTXentLoss(temperature=TEMPERATURE)(z1, z2)
    return found


def method(name: str = "resnet18", **config: Any) -> CVRL:
    torch.manual_seed(0)
    small = {"width": 8, "cifar_stem": True} if name == "resnet18" else {}
    backbone = build_backbone(BackboneConfig(name, depth="1,1,1,1", **small))
    return CVRL(CVRL.Config(hidden_dim=16, dim=8, temperature=TEMPERATURE, **config), backbone)


def batch(num: int = 6, frames: int = 3) -> Batch:
    views = [torch.randn(num, 3, frames, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    return Batch(tuple(views), None, torch.arange(num))


@pytest.mark.parametrize("oracle", [literal, lightlys])
def test_the_loss_and_its_gradients_are_the_papers(oracle: Any) -> None:
    """In float64, to the embeddings and through them to every weight."""
    cvrl = method().double()
    data = Batch(tuple(view.double() for view in batch().views), None, batch().index)
    found: dict[str, Any] = {}
    for name, loss in (("ours", lambda z: cvrl.loss(z, data, 0.0)["loss"]), ("theirs", lambda z: oracle(*z.values()))):
        embeddings = cvrl.embed(data)
        for z in embeddings.values():
            z.retain_grad()
        cvrl.zero_grad()
        value = loss(embeddings)
        value.backward()
        rows = [z.grad for z in embeddings.values()]
        found[name] = value.detach(), rows + [p.grad.clone() for p in cvrl.parameters() if p.grad is not None]
    assert abs(found["ours"][0] - found["theirs"][0]) < 1e-12
    differences = [(a - b).abs().max() for a, b in zip(found["ours"][1], found["theirs"][1], strict=True)]
    assert len(differences) > 10 and max(differences) < 1e-10
    largest = max(float(g.abs().max()) for g in found["theirs"][1])
    record("cvrl", float(abs(found["ours"][0] / found["theirs"][0] - 1)), float(max(differences)) / largest)


def test_more_views_than_two_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="num_views: expected 2 clips of a video, got 4"):
        CVRL.views(CVRL.Config(num_views=4))


def test_clips_that_all_agree() -> None:
    """By hand: every similarity is 1, so the loss is log(2 N - 1)."""
    z = torch.ones(5, 8)
    assert float(method().loss({"z1": z, "z2": z}, batch(5), 0.0)["loss"]) == pytest.approx(math.log(9), abs=1e-5)


def test_the_paper_defaults() -> None:
    config = CVRL.Config()
    first, second = CVRL.views(config)
    assert (first.kind, first.frames, first.stride, first.place) == ("clip", 16, 2, "near")
    assert (first.blur, second.blur, first.solarize, second.solarize) == (1.0, 0.1, 0.0, 0.2)
    assert (config.temperature, config.hidden_dim, config.dim, config.num_hidden) == (0.1, 2048, 128, 3)
    assert config.optimizer.lr * 1024 / 256 == pytest.approx(0.32)
    linear = [m for m in CVRL(config, build_backbone(BackboneConfig())).projector if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [2048, 2048, 2048, 128]


@pytest.mark.parametrize("name", ["resnet18", "r3d_18"])
def test_it_learns_to_tell_random_clips_apart(name: str) -> None:
    cvrl, data = method(name, num_hidden=1), batch()
    optimizer = torch.optim.SGD(cvrl.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = cvrl.loss(cvrl.embed(data), data, 0.0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
