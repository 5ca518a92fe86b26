"""SwAV: loss and gradients of a first step are those of lightly's parts; what freezes, joins and is scaled."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.data.views import Batch
from ssl_fast.methods.pretrain.swav import SwAV
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from tests.methods.pretrain.oracles import record_all

SIZES = (16, 16, 8, 8, 8)


def batch(seed: int = 0, num: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = tuple(torch.randn(num, 3, size, size, generator=generator) for size in SIZES)
    return Batch(views, None, torch.arange(num))


def make(**options: Any) -> SwAV:
    torch.manual_seed(0)
    settings = {"hidden_dim": 16, "dim": 8, "num_prototypes": 12, "num_local": 3, "freeze_prototypes": 0.1}
    config = SwAV.Config(**settings | options)
    return SwAV(config, build_backbone(BackboneConfig("resnet18", cifar_stem=True, width=8, depth="1,1,1,1")))


def step(method: SwAV, data: Batch, progress: float) -> dict[str, Tensor]:
    method.zero_grad()
    loss = method(data, progress)[1]["loss"]
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("queue_size", [0, 20])
def test_the_first_step_is_lightlys(queue_size: int) -> None:
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    heads = pytest.importorskip("lightly.models.modules.heads")
    method, data = make(queue_size=queue_size, queue_start=0.5), batch()
    head = heads.SwaVProjectionHead(method.backbone.num_features, 16, 8)
    prototypes = heads.SwaVPrototypes(8, 12)
    ours = list(method.projector.state_dict().values())
    theirs = {name: tensor for name, tensor in head.state_dict().items() if name != "layers.0.bias"}
    head.load_state_dict(dict(zip(theirs, ours, strict=True)), strict=False)
    with torch.no_grad():
        prototypes.heads[0].weight.copy_(method.prototypes.weight)
        prototypes.heads[0].bias.zero_()  # the paper's have none
    prototypes.normalize()

    # Views of one size go through the network together, then all of them through the head.
    features = torch.cat([method.backbone(torch.cat(data.views[:2])), method.backbone(torch.cat(data.views[2:]))])
    logits = prototypes(F.normalize(head(features), dim=1)).chunk(len(SIZES))
    earlier = [queue.rows @ method.prototypes.weight.T for queue in method.queues] or None
    expected = loss.SwaVLoss()(list(logits[:2]), list(logits[2:]), earlier)
    expected.backward()
    wanted = {f"backbone.{name}": p.grad for name, p in method.backbone.named_parameters()}
    kept = [p.grad for name, p in head.named_parameters() if name != "layers.0.bias"]
    wanted |= dict(zip((f"projector.{name}" for name, _ in method.projector.named_parameters()), kept, strict=True))
    wanted["prototypes.weight"] = prototypes.heads[0].weight.grad

    found = step(method, data, 0.5)
    value = found.pop("loss")
    record_all("swav", value, expected.squeeze(), found, wanted)
    torch.testing.assert_close(value, expected.detach().squeeze(), rtol=1e-5, atol=0)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm() + 1e-7, name


def test_prototypes_stay_at_first_and_have_unit_length_always() -> None:
    method = make()
    length = torch.ones(12)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), length)
    assert "prototypes.weight" not in step(method, batch(), 0.05)
    assert step(method, batch(), 0.1)["prototypes.weight"].abs().sum() > 0
    with torch.no_grad():
        method.prototypes.weight.mul_(3)
    method.after_step(0.1)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), length)


def test_the_queue_holds_the_last_rows_and_joins_later() -> None:
    method, plain = make(queue_size=10, queue_start=0.5), make()
    with torch.no_grad():
        z = [method.embed(batch(seed))["z"] for seed in range(2)]
    for rows in z:
        method.loss({"z": rows}, batch(), 0.0)
        method.after_step(0.0)
    for view, queue in enumerate(method.queues):  # of 12 rows the last 10
        torch.testing.assert_close(queue.rows.sort(0).values, torch.cat(z)[2:, view].sort(0).values)
    early, alone = (m.loss({"z": z[0]}, batch(), 0.4)["loss"] for m in (method, plain))
    late = method.loss({"z": z[0]}, batch(), 0.5)["loss"]
    assert early == alone != late


def test_views() -> None:
    views = SwAV.views(SwAV.Config())
    assert [view.size for view in views] == [224] * 2 + [96] * 6
    assert views[0].crop_scale == (0.14, 1.0) and views[-1].crop_scale == (0.05, 0.14)
    assert [v.size for v in SwAV.views(SwAV.Config(num_local=1, local_size=40))] == [224, 224, 40]


def test_a_collapsed_batch_costs_log_k() -> None:
    method = make()
    row = nn.functional.normalize(torch.zeros(6, 5, 8) + method.prototypes.weight.mean(0), dim=-1)
    method.prototypes.weight.data.zero_()
    assert method.loss({"z": row}, batch(), 0.0)["loss"].item() == pytest.approx(torch.log(torch.tensor(12.0)).item())
