"""Batch normalisation over ranks: what the conversion keeps."""

import pytest
import torch
from torch import nn

from ssl_fast.models.norm import synchronize_batch_norm

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_050", "resnet18"])
def test_every_norm_is_synchronised_and_the_function_stays(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        converted = synchronize_batch_norm(nn.Sequential(model))
        after = converted(images)
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    torch.testing.assert_close(after, before)
