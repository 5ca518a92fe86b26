"""Several views through one network: stacked by size, in their order."""

import pytest
import torch
from torch import Tensor, nn

from ssl_fast.methods.base import Method


class Counted(nn.Module):
    """The mean of each picture; remembers the batches that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return x.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("stacked", [True, False])
def test_views_of_one_size_are_one_batch(stacked: bool) -> None:
    method, module = Method(None, nn.Identity()), Counted()  # type: ignore[arg-type]
    method.stacked_views = stacked
    views = [torch.randn(4, 3, size, size) for size in (8, 4, 8, 4, 4, 2)]
    outputs = method.through(module, views)
    assert len(outputs) == len(views)
    for view, output in zip(views, outputs, strict=True):
        torch.testing.assert_close(output, view.mean((1, 2, 3))[:, None])
    together = [(8, 3, 8, 8), (12, 3, 4, 4), (4, 3, 2, 2)]
    assert module.seen == (together if stacked else [tuple(view.shape) for view in views])
