"""Barlow Twins beside lightly's head and loss, and the learning rates of its parameters."""

import pytest
from torch import Tensor

from ssl_fast.data.views import Batch
from ssl_fast.optim.config import build_optimizer, scheduled_
from tests.methods.pretrain.oracles import batch_of, compare, make_pair
from tests.train.runs import make_method

losses = pytest.importorskip("lightly.loss", reason="lightly is not installed")
modules = pytest.importorskip("lightly.models.modules", reason="lightly is not installed")


def test_the_first_step_is_lightlys() -> None:
    method, oracle = make_pair("barlow_twins", projector=modules.BarlowTwinsProjectionHead(64, 16, 16))

    def loss(batch: Batch) -> Tensor:
        z1, z2 = (oracle.projector(oracle.backbone(view)) for view in batch.views)
        return losses.BarlowTwinsLoss(lambda_param=0.0051)(z1, z2)

    compare(method, oracle, loss, batch_of(method))


def test_biases_and_norms_have_a_rate_of_their_own_and_are_not_adapted() -> None:
    method = make_method("barlow_twins")
    optimizer = build_optimizer(method.config.optimizer, method.named_parameters(), 0.2, options=method.group_options)
    scheduled_(optimizer, 0.2, 0.2, 1e-6)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in method.named_parameters():
        group, bias = found[id(parameter)], parameter.ndim == 1
        assert abs(group["lr"] - (0.0048 if bias else 0.2)) < 1e-9, name
        assert (group["adapt"] is False, group["weight_decay"] == 0) == (bias, bias), name
