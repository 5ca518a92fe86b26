"""SimCLR: which loss its embeddings are given."""

import torch

from ssl_fast import dcl, nt_xent
from ssl_fast.data.views import Batch
from ssl_fast.methods.pretrain.simclr import SimCLR
from ssl_fast.models.backbone import BackboneConfig, build_backbone


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
