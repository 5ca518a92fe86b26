"""Zero-shot classification: an image belongs to the class whose described name is most like it.

    w_c = mean_t text(template_t(c)) / |.|, brought to unit length,   class of an image u = argmax_c cos(u, w_c)

Letters: N images, C classes, D embedding, T texts.

Reference: Radford et al. 2021, arXiv:2103.00020, section 3.1.4 (templates are averaged in the space of embeddings).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.data.captions import Tokenize, describe
from ssl_fast.eval.features import evaluation_mode
from ssl_fast.eval.knn import check_labels
from ssl_fast.ops.knn_topk import knn_topk

Embed = Callable[[Sequence[str]], Tensor]  # T texts -> [T, D]


def text_embedder(
    tower: nn.Module,  # tokens [T, L] -> embeddings [T, D]
    tokenize: Tokenize,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> Embed:
    """A function that makes unit embeddings [T, D] fp32, on the CPU, of T texts."""
    tower = tower.to(device)

    def embed(texts: Sequence[str]) -> Tensor:
        rows = []
        with evaluation_mode(tower), torch.inference_mode():
            for begin in range(0, len(texts), batch_size):
                tokens = torch.from_numpy(tokenize(texts[begin : begin + batch_size])).to(device)
                rows.append(F.normalize(tower(tokens).float(), dim=1).cpu())
        return torch.cat(rows)

    return embed


def class_embeddings(embed: Embed, classes: Sequence[str], templates: Sequence[str]) -> Tensor:  # [C, D]
    """Unit embeddings of classes: the mean over the templates, of unit embeddings.

    Raises:
        ValueError: no class or no template.
    """
    if not classes or not templates:
        raise ValueError(f"classes, templates: expected one or more, got {len(classes)} and {len(templates)}")
    texts = [text for name in classes for text in describe(name, templates)]
    rows = embed(texts).reshape(len(classes), len(templates), -1)
    return F.normalize(rows.mean(1), dim=1)


def zero_shot_accuracy(
    image: Tensor,  # [N, D]
    labels: Tensor | None,  # [N] int64
    class_rows: Tensor,  # [C, D]
) -> dict[str, Any]:
    """Accuracy of the most similar class, and of the five most similar where there are more than five.

    Returns:
        {"top1", "top5" (only with more than five classes)}; accuracies in [0, 1].

    Raises:
        ValueError: labels are missing, not one an image, or not below C.

    Example:
        >>> zero_shot_accuracy(torch.eye(3), torch.tensor([0, 1, 1]), torch.eye(3))["top1"]
        0.6666666666666666
    """
    labels = check_labels("labels", labels, len(image)).to(image.device)
    if int(labels.max()) >= len(class_rows):
        raise ValueError(f"labels: expected numbers below {len(class_rows)} (the classes), got {int(labels.max())}")
    hit = knn_topk(image, class_rows, min(5, len(class_rows)))[1] == labels[:, None]
    scores = {"top1": hit[:, 0].double().mean().item()}
    return scores | ({"top5": hit.any(1).double().mean().item()} if len(class_rows) > 5 else {})
