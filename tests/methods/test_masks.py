"""Masks: how many patches, where, of what shape, and that only (key, sample) decide."""

import math

import pytest
import torch

from ssl_fast.methods.masks import block_masks, random_order

INDEX = torch.arange(4000)


def test_random_order_is_a_permutation_and_uniform():
    order = random_order(INDEX, 5, 16)
    assert torch.equal(order.sort(1).values, torch.arange(16).expand(4000, -1))
    first = torch.bincount(order[:, 0], minlength=16)
    assert ((first - 250).square() / 250).sum() < 15 + 5 * 30**0.5
    # each pair of patches is kept together equally often: 4 of 16 are kept
    kept = torch.zeros(4000, 16).scatter_(1, order[:, :4], 1)
    together = (kept.T @ kept / 4000)[~torch.eye(16, dtype=torch.bool)]
    assert (together - 4 / 16 * 3 / 15).abs().max() < 5 * (0.05 * 0.95 / 4000) ** 0.5


@pytest.mark.parametrize("grid", [(8, 8), (14, 14), (4, 4), (6, 10)])
def test_how_many_patches_are_masked(grid):
    masks = block_masks(INDEX, 1, grid)
    num_patches = grid[0] * grid[1]
    assert masks.shape == (4000, 2, num_patches) and masks.dtype == torch.bool
    count = masks.sum(2).flatten()
    masked = count[count > 0]
    assert abs(len(masked) / 8000 - 0.5) < 5 * 0.5 / 8000**0.5
    assert masked.min() == round(0.1 * num_patches) and masked.max() == round(0.5 * num_patches)
    assert abs(masked.double().mean() / num_patches - 0.3) < 0.01
    if num_patches > 60:  # uniform between: a third in each third
        share = torch.histc(masked / num_patches, 4, 0.1, 0.5) / len(masked)
        assert (share - 0.25).abs().max() < 0.06


def test_the_two_views_are_masked_apart():
    count = block_masks(INDEX, 1, (8, 8)).sum(2)
    both = (count > 0).all(1).double().mean()
    assert abs(both - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_a_mask_is_a_block():
    """One of the first block's size is a rectangle; its shapes spread over the allowed ratios."""
    masks = block_masks(INDEX, 2, (16, 16), probability=1.0, ratio=(0.1, 0.1), smallest=26).view(-1, 16, 16)
    rows, columns = masks.any(2).sum(1), masks.any(1).sum(1)
    compact = masks.sum((1, 2)) / (rows * columns)
    assert (masks.sum((1, 2)) == 26).all()
    assert (compact > 0.7).double().mean() > 0.6  # one block, or a little of a second one
    shapes = (rows / columns)[compact > 0.7].double()
    assert shapes.min() > 0.3 * 0.7 and shapes.max() < 1 / (0.3 * 0.7)
    assert abs(shapes.log().mean()) < 0.1 and abs(shapes.log().std() - 2 * math.log(1 / 0.3) / 12**0.5) < 0.15


def test_every_patch_is_masked_and_neighbours_together():
    masks = block_masks(INDEX, 3, (8, 8), probability=1.0).view(-1, 8, 8).double()
    often = masks.mean(0)
    assert often.min() > 0.06 and often.max() < 0.6  # corners are seldom inside a rectangle
    for other in (often.flip(0), often.flip(1), often.T):
        assert (often - other).abs().max() < 5 * (2 * 0.3 * 0.7 / 8000) ** 0.5
    pairs = (masks[:, :, 1:] * masks[:, :, :-1]).sum((1, 2)).mean()
    scattered = 56 * (masks.mean((1, 2)) ** 2).mean()
    assert pairs > 1.8 * scattered


def test_a_function_of_key_and_sample():
    masks = block_masks(INDEX[:50], 9, (8, 8))
    assert torch.equal(block_masks(INDEX[:50].flip(0), 9, (8, 8)).flip(0), masks)
    assert torch.equal(block_masks(INDEX[17:18], 9, (8, 8)), masks[17:18])
    assert not torch.equal(block_masks(INDEX[:50], 10, (8, 8)), masks)


def test_high_ratios_are_exact_too():
    assert (block_masks(INDEX[:500], 4, (8, 8), probability=1.0, ratio=(0.9, 0.9)).sum(2) == 58).all()
