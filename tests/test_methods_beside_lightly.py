"""The benchmark of methods beside lightly compares like with like: the same weights, from views of the same sizes."""

from collections import Counter
from functools import partial

import pytest
import torch

pytest.importorskip("lightly")

from benchmarks.train.beside_lightly import backbone
from benchmarks.train.lightly_methods import PEERS
from benchmarks.train.methods_beside_lightly import METHODS, SMALL, our_method, peer
from ssl_fast.config import classes_in
from ssl_fast.data.views import Batch
from tests.methods.pretrain.oracles import batch_of

BOTH = sorted(PEERS.keys() & classes_in(METHODS))
NETWORK = partial(backbone, **SMALL)


def weights(module: torch.nn.Module) -> Counter[tuple[int, ...]]:
    """Shapes of what is trained, but for biases and norms."""
    return Counter(tuple(p.shape) for p in module.parameters() if p.requires_grad and p.ndim > 1)


@pytest.mark.parametrize("name", BOTH)
def test_both_train_the_same_weights_on_views_of_the_same_sizes(name: str) -> None:
    ours, theirs = our_method(name, NETWORK, 0), peer(name, NETWORK, 0)
    assert weights(ours) == weights(theirs)
    for a, b in zip(ours.backbone.parameters(), theirs.backbone.parameters(), strict=True):
        assert torch.equal(a, b)
    batch: Batch = batch_of(ours, count=8)
    image = pytest.importorskip("PIL.Image").new("RGB", (32, 32), (200, 100, 50))
    ours.before_step(0.0)
    assert [view.shape for view in theirs.transform()(image)] == [view.shape[1:] for view in batch.views]
    loss = theirs.loss(batch.views, False)
    loss.backward()
    theirs.after_step(0.0)
    assert torch.isfinite(loss) and torch.isfinite(ours(batch, 0.0)[1]["loss"])
