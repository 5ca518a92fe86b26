"""SigLIP: open_clip's loss and gradients on the same towers, with its own text tower and bias."""

import math

import pytest

pytest.importorskip("open_clip")

from ssl_fast.methods.pretrain.siglip import SigLIP
from ssl_fast.models.text import TextConfig
from tests.methods.pretrain.open_clip_towers import differences, example, make, peer
from tests.methods.pretrain.oracles import record
from tests.train.runs import make_method, train_losses

TEXT = TextConfig(width=32, layers=2, heads=2, context_length=10, vocab_size=1024, causal=False, pool="last")


def test_a_first_step_is_open_clips() -> None:
    from open_clip.loss import SigLipLoss

    method = make(SigLIP, TEXT)
    loss, gradient = differences(method, peer(method, math.log(10), -10.0), SigLipLoss())
    record("siglip", loss, gradient)
    assert loss <= 1e-5 and gradient <= 1e-5


def test_first_losses() -> None:
    runs = [train_losses(make_method("siglip"), batch_size=12, epochs=1) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] == pytest.approx(GOLDEN, rel=1e-5)


GOLDEN = [5.582467555999756, 3.891791343688965, 3.6262006759643555, 3.6696267127990723, 3.6425392627716064]


def test_scale_and_bias_are_learned_and_logged() -> None:
    method = make(SigLIP, TEXT)
    losses = method(example(method), 0.0)[1]
    losses["loss"].backward()
    assert losses["logit_scale"].item() == pytest.approx(10.0) and losses["logit_bias"].item() == -10.0
    assert method.bias.grad is not None and method.bias.grad.item() < 0  # more weight for the pairs at first
    assert method.log_scale.grad is not None
