"""SimSiam beside lightly's heads and loss, and the predictor's learning rate."""

import pytest
from torch import Tensor

from ssl_fast.data.views import Batch
from ssl_fast.optim.config import build_optimizer, scheduled_
from tests.methods.pretrain.oracles import batch_of, compare, make_pair
from tests.train.runs import make_method

losses = pytest.importorskip("lightly.loss", reason="lightly is not installed")
modules = pytest.importorskip("lightly.models.modules", reason="lightly is not installed")


def test_the_first_step_is_lightlys() -> None:
    method, oracle = make_pair(
        "simsiam",
        projector=modules.SimSiamProjectionHead(64, 16, 16),
        predictor=modules.SimSiamPredictionHead(16, 8, 16),
    )

    def loss(batch: Batch) -> Tensor:
        z1, z2 = (oracle.projector(oracle.backbone(view)) for view in batch.views)
        p1, p2 = oracle.predictor(z1), oracle.predictor(z2)
        criterion = losses.NegativeCosineSimilarity()
        return (criterion(p1, z2.detach()) + criterion(p2, z1.detach())) / 2

    compare(method, oracle, loss, batch_of(method))


def test_the_predictors_rate_does_not_decay() -> None:
    method = make_method("simsiam")
    optimizer = build_optimizer(method.config.optimizer, method.named_parameters(), 1.0, options=method.group_options)
    scheduled_(optimizer, 0.25, 1.0, 0.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in method.named_parameters():
        assert rates[id(parameter)] == (1.0 if name.startswith("predictor.") else 0.25), name
