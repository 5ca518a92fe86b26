"""MixStyle: the statistics that come out, the equation by hand, and randomness that is replayed."""

from __future__ import annotations

import torch

from ssl_fast.models.parts.mixstyle import MixStyle
from tests.models.parts.conftest import Build, images


def test_every_channel_has_a_mixture_of_two_styles() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4, 6, 6) * torch.rand(8, 4, 1, 1) * 3 + torch.randn(8, 4, 1, 1)
    y = MixStyle(1.0)(x)
    mean, new = x.mean((2, 3)), y.mean((2, 3))
    # l mu + (1 - l) mu' for one other sample and one l, the same for all channels
    for i in range(8):
        ratio = (new[i] - mean[i])[None] / (mean - mean[i]).where((mean != mean[i]), torch.nan)  # [8, 4]
        spread = ratio.amax(1) - ratio.amin(1)
        assert torch.allclose(new[i], mean[i]) or spread.nan_to_num(1.0).min() < 1e-3
    whiten = lambda v: (v - v.mean((2, 3), keepdim=True)) / v.std((2, 3), keepdim=True)  # noqa: E731
    torch.testing.assert_close(whiten(y), whiten(x), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(y, x, atol=0.1)


def test_never_and_in_eval_mode_nothing_happens() -> None:
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(MixStyle(0.0)(x), x, rtol=1e-5, atol=1e-5)
    assert MixStyle(1.0).eval()(x) is x


def test_half_of_the_batches_are_mixed() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(4, 2, 3, 3), MixStyle(0.5)
    mixed = sum(not torch.allclose(layer(x), x, atol=1e-4) for _ in range(400))
    assert 150 < mixed < 230  # of 400; a few permutations and shares change nothing


def test_no_gradient_flows_through_the_statistics() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 2, 3, 3, requires_grad=True)
    torch.manual_seed(1)
    y = MixStyle(1.0)(x)
    y.sum().backward()
    # every pixel of a channel has the same slope, new deviation / deviation
    torch.testing.assert_close(x.grad, x.grad[:, :, :1, :1].expand_as(x))
    assert x.grad.min() > 0


def test_a_seed_replays_it(build: Build) -> None:
    backbone, x = build("convnext", mixstyle=1.0).train(), images("convnext", 4)
    outputs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outputs.append(backbone(x))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
