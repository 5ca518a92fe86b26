"""BYOL beside lightly's heads and loss: its squared distances are 2 - 2 cos, and both directions are added."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ssl_fast.data.views import Batch
from tests.methods.pretrain.oracles import batch_of, compare, make_pair

losses = pytest.importorskip("lightly.loss", reason="lightly is not installed")
modules = pytest.importorskip("lightly.models.modules", reason="lightly is not installed")


def test_the_first_step_is_lightlys() -> None:
    method, oracle = make_pair(
        "byol", projector=modules.BYOLProjectionHead(64, 16, 8), predictor=modules.BYOLPredictionHead(8, 16, 8)
    )
    oracle.teacher = nn.Sequential(copy.deepcopy(method.backbone), modules.BYOLProjectionHead(64, 16, 8))

    def loss(batch: Batch) -> Tensor:
        p1, p2 = (oracle.predictor(oracle.projector(oracle.backbone(view))) for view in batch.views)
        with torch.no_grad():
            z1, z2 = (oracle.teacher(view) for view in batch.views)
        criterion = losses.NegativeCosineSimilarity()
        return 4 + 2 * (criterion(p1, z2) + criterion(p2, z1))

    compare(method, oracle, loss, batch_of(method))
