"""SupCon beside pytorch-metric-learning's loss, images without a class, and data sets without classes."""

import pytest
import torch
from torch import Tensor

from ssl_fast.data.views import Batch
from tests.methods.pretrain.oracles import batch_of, compare, make_pair
from tests.train.runs import make_method

modules = pytest.importorskip("lightly.models.modules", reason="lightly is not installed")
learning = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch_metric_learning is not installed")

LABELS = torch.tensor([0, 1, 2, 0, -1, 1, 3, 0, 2, -1, 1, 1])  # -1: not known; 3: alone in its class


def test_the_first_step_is_metric_learnings() -> None:
    method, oracle = make_pair("supcon", "none", projector=modules.SimCLRProjectionHead(64, 16, 8, batch_norm=False))

    def loss(batch: Batch) -> Tensor:
        z = torch.cat([oracle.projector(oracle.backbone(view)) for view in batch.views])
        known = LABELS.repeat(2) >= 0
        return learning.SupConLoss(temperature=0.1)(z[known], LABELS.repeat(2)[known])

    compare(method, oracle, loss, batch_of(method, labels=LABELS))


@pytest.mark.parametrize(("labels", "got"), [(None, "none"), (torch.zeros(12, 3, dtype=torch.int64), "several")])
def test_a_data_set_without_classes_is_refused(labels: Tensor | None, got: str) -> None:
    method = make_method("supcon")
    with pytest.raises(ValueError, match=f"data: expected a data set with labels for method=supcon.*got {got}"):
        method(batch_of(method, labels=labels), 0.0)
