"""MoCo beside lightly's head, loss and memory bank."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ssl_fast.data.views import Batch
from tests.methods.pretrain.oracles import batch_of, compare, make_pair

losses = pytest.importorskip("lightly.loss", reason="lightly is not installed")
modules = pytest.importorskip("lightly.models.modules", reason="lightly is not installed")


def test_the_first_step_is_lightlys() -> None:
    method, oracle = make_pair("moco", "none", projector=modules.MoCoProjectionHead(64, 16, 8))
    oracle.teacher = nn.Sequential(copy.deepcopy(method.backbone), modules.MoCoProjectionHead(64, 16, 8))
    criterion = losses.NTXentLoss(temperature=0.2, memory_bank_size=(50, 8))
    criterion.memory_bank.bank = method.queue.rows.float()

    def loss(batch: Batch) -> Tensor:
        q = oracle.projector(oracle.backbone(batch.views[0]))
        with torch.no_grad():
            k = oracle.teacher(batch.views[1])
        return criterion(q, k)

    compare(method, oracle, loss, batch_of(method))
