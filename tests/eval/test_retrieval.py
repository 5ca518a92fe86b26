"""Retrieval between images and texts: by hand, against a plain count over the whole matrix, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from ssl_fast.eval.retrieval import retrieval_recall


def test_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    text = torch.tensor([[2.0, 0.1], [0.0, 3.0], [0.1, 1.0], [0.0, -1.0]])
    found = retrieval_recall(image, text, torch.tensor([0, 0, 1, 2]), ks=(1, 2, 5))
    # image 0 finds text 0; image 1 finds text 1 (of image 0) first; image 2 finds text 3 after text 1 and 3 tie at 0
    assert found["image_to_text"] == {"recall@1": pytest.approx(1 / 3), "recall@2": 1.0}
    # texts 0 and 2 find theirs at once; text 1 its image second; text 3 has images 0 and 2 alike: the smaller first
    assert found["text_to_image"] == {"recall@1": 0.5, "recall@2": 1.0}
    assert found["protocol"]["num_texts"] == 4


def test_against_a_count_over_the_whole_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(40, 8, generator=generator), torch.randn(100, 8, generator=generator)
    image_of = torch.cat([torch.arange(40), torch.randint(40, (60,), generator=generator)])
    text += 1.5 * image[image_of]
    cosine = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    found = retrieval_recall(image, text, image_of)
    mine = image_of == torch.arange(40)[:, None]
    for k in (1, 5, 10):
        to_text = [bool(mine[i, row.topk(k).indices].any()) for i, row in enumerate(cosine)]
        to_image = [int(image_of[j]) in row.topk(k).indices.tolist() for j, row in enumerate(cosine.T)]
        assert found["image_to_text"][f"recall@{k}"] == pytest.approx(sum(to_text) / 40)
        assert found["text_to_image"][f"recall@{k}"] == pytest.approx(sum(to_image) / 100)
    assert 0.2 < found["image_to_text"]["recall@1"] < found["image_to_text"]["recall@10"] <= 1


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_of: expected one image a text, \[2\], got shape \[3\]"):
        retrieval_recall(torch.eye(2), torch.eye(2), torch.arange(3))
    with pytest.raises(ValueError, match=r"image_of: expected a text for each of 2 images, 1 have none"):
        retrieval_recall(torch.eye(2), torch.eye(2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"image_of: expected numbers from 0 to 1, got 0 to 2"):
        retrieval_recall(torch.eye(2), torch.eye(2), torch.tensor([0, 2]))
