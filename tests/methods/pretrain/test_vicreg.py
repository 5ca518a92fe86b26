"""VICReg beside lightly's head and loss, which halves the variance term."""

import pytest
from torch import Tensor

from ssl_fast.data.views import Batch
from tests.methods.pretrain.oracles import batch_of, compare, make_pair

losses = pytest.importorskip("lightly.loss", reason="lightly is not installed")
heads = pytest.importorskip("lightly.models.modules.heads", reason="lightly is not installed")


def test_the_first_step_is_lightlys() -> None:
    method, oracle = make_pair("vicreg", projector=heads.VICRegProjectionHead(64, 16, 16))

    def loss(batch: Batch) -> Tensor:
        z1, z2 = (oracle.projector(oracle.backbone(view)) for view in batch.views)
        return losses.VICRegLoss(mu_param=50.0)(z1, z2)

    compare(method, oracle, loss, batch_of(method))
