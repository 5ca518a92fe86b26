"""SimCLR beside lightly's head and loss, and which loss its embeddings are given."""

import pytest
import torch
from torch import Tensor

from ssl_fast import dcl, nt_xent
from ssl_fast.data.views import Batch
from ssl_fast.methods.pretrain.simclr import SimCLR
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from tests.methods.pretrain.oracles import batch_of, compare, make_pair

losses = pytest.importorskip("lightly.loss", reason="lightly is not installed")
modules = pytest.importorskip("lightly.models.modules", reason="lightly is not installed")


def test_the_first_step_is_lightlys() -> None:
    method, oracle = make_pair("simclr", projector=modules.SimCLRProjectionHead(64, 16, 8))

    def loss(batch: Batch) -> Tensor:
        z1, z2 = (oracle.projector(oracle.backbone(view)) for view in batch.views)
        return losses.NTXentLoss(temperature=0.1)(z1, z2)

    compare(method, oracle, loss, batch_of(method))


def test_the_loss_is_nt_xent_or_its_decoupled_form() -> None:
    views = tuple(torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    batch = Batch(views, None, torch.arange(6))
    found = {}
    for decoupled, loss in ((False, nt_xent), (True, dcl)):
        torch.manual_seed(0)
        config = SimCLR.Config(temperature=0.2, decoupled=decoupled, hidden_dim=16, dim=8)
        method = SimCLR(config, build_backbone(BackboneConfig("resnet18", width=8, depth="1,1,1,1")))
        z = method.embed(batch)
        found[decoupled] = method.loss(z, batch, 0.0)["loss"]
        torch.testing.assert_close(found[decoupled], loss(z["z1"], z["z2"], temperature=0.2))
    assert found[True] < found[False]  # one term fewer in each denominator


def test_more_views_than_two() -> None:
    config = SimCLR.Config(num_views=3, hidden_dim=16, dim=8)
    assert len(SimCLR.views(config)) == 3
    torch.manual_seed(0)
    method = SimCLR(config, build_backbone(BackboneConfig("resnet18", width=8, depth="1,1,1,1")))
    batch = Batch(tuple(torch.randn(3, 6, 3, 16, 16)), None, torch.arange(6))
    z = method.embed(batch)
    torch.testing.assert_close(method.loss(z, batch, 0.0)["loss"], nt_xent(z["z1"], z["z2"], z["z3"]))
    method.config.decoupled = True
    pairs = [dcl(z[a], z[b]) for a, b in (("z1", "z2"), ("z1", "z3"), ("z2", "z3"))]
    torch.testing.assert_close(method.loss(z, batch, 0.0)["loss"], sum(pairs) / 3)
    with pytest.raises(ValueError, match="num_views: expected 2 or more, got 1"):
        SimCLR.views(SimCLR.Config(num_views=1))
