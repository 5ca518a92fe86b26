"""Supervised fine-tuning: the loss by hand, and when the backbone is frozen."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.data.views import Batch
from ssl_fast.methods.finetune.supervised import Supervised, SupervisedConfig


class Tiny(nn.Module):
    """A backbone with what freezing must stop: weights, batch statistics, dropout."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x))).mean((2, 3))


def make(**settings: object) -> Supervised:
    torch.manual_seed(0)
    return Supervised(SupervisedConfig(num_classes=3, **settings), Tiny()).train()  # type: ignore[arg-type]


def batch(num: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 1, 5, 5, generator=generator)
    return Batch((x,), torch.arange(num) % 3, torch.arange(num))


def step(method: Supervised, progress: float) -> dict[str, Tensor | None]:
    method.zero_grad()
    method.before_step(progress)
    method(batch(), progress)[1]["loss"].backward()
    return {name: p.grad for name, p in method.named_parameters()}


def test_loss_and_accuracy_by_hand() -> None:
    method = make()
    with torch.no_grad():
        method.head.weight.zero_()
        method.head.bias.copy_(torch.tensor([math.log(2), 0.0, 0.0]))
    h = torch.randn(6, 6)
    labels = torch.tensor([0, 0, 0, 1, 2, 0])
    out = method.loss({"h": h}, Batch((h,), labels, torch.arange(6)), 0.0)
    assert out["loss"].item() == pytest.approx((4 * math.log(2) + 2 * math.log(4)) / 6)
    assert out["train_top1"].item() == pytest.approx(4 / 6)


def test_label_smoothing() -> None:
    method = make(label_smoothing=0.2)
    h, labels = torch.randn(6, 6), torch.arange(6) % 3
    expected = F.cross_entropy(method.head(h), labels, label_smoothing=0.2)
    torch.testing.assert_close(method.loss({"h": h}, Batch((h,), labels, labels), 0.0)["loss"], expected)


def test_frozen_touches_the_head_alone() -> None:
    method = make(frozen=True)
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    gradients = step(method, 0.9)
    assert {name for name, grad in gradients.items() if grad is not None} == {"head.weight", "head.bias"}
    assert all(torch.equal(before[name], value) for name, value in method.backbone.state_dict().items())
    assert [name for name, p in method.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def test_unfreezing_is_a_function_of_the_progress() -> None:
    method = make(unfreeze_after_epoch=1, epochs=3)
    assert method.find_unused_parameters and not make().find_unused_parameters
    for progress, frozen in ((0.0, True), (4 / 15, True), (5 / 15, False), (1.0, False), (0.1, True)):
        gradients = step(method, progress)
        assert method.frozen == frozen
        assert (gradients["backbone.conv.weight"] is None) == frozen
        assert method.backbone.training != frozen
    assert method.backbone.norm.num_batches_tracked == 2  # type: ignore[union-attr]


def test_gradients_of_a_microbatch_reach_the_frozen_features() -> None:
    # Exact accumulation embeds again and sends gradients into what `embed` returns, frozen or not.
    method = make(frozen=True)
    method.before_step(0.0)
    with torch.no_grad():
        assert not method.embed(batch())["h"].requires_grad
    h = method.embed(batch())["h"]
    torch.autograd.backward([h], [torch.ones_like(h)])


def test_errors_name_the_setting() -> None:
    with pytest.raises(ValueError, match=r"method.num_classes: expected at least 2, got 0"):
        Supervised(SupervisedConfig(), Tiny())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected one of the two, got frozen=true and unfreeze_after_epoch=2"):
        make(frozen=True, unfreeze_after_epoch=2, epochs=3)
    with pytest.raises(ValueError, match=r"unfreeze_after_epoch: expected 0 to 3 .* got 4"):
        make(unfreeze_after_epoch=4, epochs=3)
    unlabelled = batch()
    unlabelled.labels = None
    with pytest.raises(ValueError, match=r"data: expected a data set with labels"):
        make()(unlabelled, 0.0)
