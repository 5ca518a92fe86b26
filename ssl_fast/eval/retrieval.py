"""Retrieval between images and texts: how often what belongs together is among the k most similar.

    recall@k (image to text) = share of images of which a caption is among the k texts of largest cosine
    recall@k (text to image) = share of texts whose image is among the k images of largest cosine

Letters: N images, T texts, D embedding.

Reference: Karpathy and Fei-Fei 2014, arXiv:1412.2306, section 4.1 (recall at 1, 5 and 10, both ways).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_fast.ops.knn_topk import knn_topk

KS = (1, 5, 10)


def retrieval_recall(
    image: Tensor,  # [N, D]
    text: Tensor,  # [T, D]
    image_of: Tensor,  # [T] int64
    ks: Sequence[int] = KS,
) -> dict[str, Any]:
    """Recall at each k, both ways, with its protocol.

    Equally similar ones are ordered by their number, so the answer is a function of the embeddings alone.

    Args:
        image: [N, D] embeddings, any scale.
        text: [T, D] embeddings on the same device.
        image_of: [T] number of the image that each text belongs to; every image has one text or more.
        ks: how many are looked at; those beyond what there is are left out.

    Returns:
        {"image_to_text": {"recall@1": ...}, "text_to_image": {...}, "protocol": {...}}; recalls in [0, 1].

    Raises:
        ValueError: the shapes disagree, or an image has no text.

    Example:
        >>> found = retrieval_recall(torch.eye(2), torch.tensor([[1.0, 0.0], [0.9, 0.1]]), torch.tensor([0, 1]))
        >>> found["image_to_text"], found["text_to_image"]
        ({'recall@1': 1.0}, {'recall@1': 0.5})
    """
    image_of = _checked(image, text, image_of)
    to_text = image_of[knn_topk(image, text, min(max(ks), len(text)))[1]]  # [N, k] the image of each text found
    to_image = knn_topk(text, image, min(max(ks), len(image)))[1]  # [T, k]
    return {
        "image_to_text": _recall(to_text == torch.arange(len(image), device=image.device)[:, None], len(text), ks),
        "text_to_image": _recall(to_image == image_of[:, None], len(image), ks),
        "protocol": {
            "similarity": "cosine",
            "num_images": len(image),
            "num_texts": len(text),
            "hit": "a caption of the image itself; equal captions of other images are no hits",
        },
    }


def _recall(
    hit: Tensor,  # [Q, k] bool
    size: int,
    ks: Sequence[int],
) -> dict[str, float]:
    return {f"recall@{k}": hit[:, :k].any(1).double().mean().item() for k in ks if k <= size}


def _checked(image: Tensor, text: Tensor, image_of: Tensor) -> Tensor:
    if image_of.shape != (len(text),):
        raise ValueError(f"image_of: expected one image a text, [{len(text)}], got shape {list(image_of.shape)}")
    image_of = image_of.to(image.device)
    described = torch.zeros(len(image), dtype=torch.bool, device=image.device)
    if len(text) and not 0 <= int(image_of.min()) <= int(image_of.max()) < len(image):
        raise ValueError(
            f"image_of: expected numbers from 0 to {len(image) - 1}, got {image_of.min()} to {image_of.max()}"
        )
    described[image_of] = True
    if not len(image) or not described.all():
        raise ValueError(
            f"image_of: expected a text for each of {len(image)} images, {int((~described).sum())} have none"
        )
    return image_of
