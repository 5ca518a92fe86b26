"""Zero-shot classification: embeddings of classes by hand, accuracies, and towers left as they were."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_fast.eval.zero_shot import class_embeddings, text_embedder, zero_shot_accuracy


class Tower(nn.Module):
    """Counts letters, so that embeddings can be said in advance; drops rows out while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(torch.stack([(tokens == ord(letter)).sum(1).double() for letter in "abc"], 1))


def code_points(texts: list[str]) -> np.ndarray:
    return np.array([[ord(c) for c in text.ljust(8)] for text in texts], dtype=np.int64)


def test_classes_are_the_mean_over_templates() -> None:
    tower = Tower().train()
    embed = text_embedder(tower, code_points, batch_size=3)
    rows = class_embeddings(embed, ["a", "b_b"], ("{}", "c{}"))
    assert tower.training and tower.drop.training
    half = 1 / math.sqrt(2)
    first = torch.tensor([1 + half, 0, half])  # "a" and "ca", each of unit length, added
    second = torch.tensor([0, 1 + 2 / math.sqrt(5), 1 / math.sqrt(5)])  # "b b" and "cb b"
    torch.testing.assert_close(rows, torch.stack([first / first.norm(), second / second.norm()]))


def test_accuracies() -> None:
    classes = torch.eye(7)
    image = torch.eye(7)[[0, 1, 2, 3]] + 0.5 * torch.eye(7)[[6, 5, 4, 4]]
    assert zero_shot_accuracy(image, torch.tensor([0, 1, 4, 6]), classes) == {"top1": 0.5, "top5": 0.75}
    assert zero_shot_accuracy(image[:, :3], torch.tensor([0, 1, 2, 0]), classes[:3, :3]) == {"top1": 1.0}


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labels: expected a label for each sample, got None"):
        zero_shot_accuracy(torch.eye(3), None, torch.eye(3))
    with pytest.raises(ValueError, match=r"labels: expected numbers below 2 \(the classes\), got 2"):
        zero_shot_accuracy(torch.eye(3), torch.arange(3), torch.eye(3)[:2])
    with pytest.raises(ValueError, match=r"expected one or more, got 0 and 1"):
        class_embeddings(text_embedder(Tower(), code_points), [], ("{}",))
