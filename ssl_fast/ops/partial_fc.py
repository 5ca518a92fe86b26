"""Partial FC: of the classes, those of the batch and as many others as asked for, drawn on the device.

Reference: An et al. 2022, "Killing Two Birds with One Stone", arXiv:2203.15565, Sec. 3.2.
"""

import math

import torch
from torch import Tensor


def sample_classes(
    target: Tensor,  # [M] int64, negative: none of these classes
    num_classes: int,
    sample_rate: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """All classes that occur in `target` and random others, without waiting for the device.

    Args:
        target: classes of the samples, [M].
        num_classes: C.
        sample_rate: part of the classes to keep; at least M of them (or all) are, so that every target has room.
        generator: of the device of `target`; None: torch's own.

    Returns:
        The classes kept [K], rising; and `target` [M] as numbers of places among them, negative ones as they were.
    """
    kept = min(num_classes, max(math.ceil(sample_rate * num_classes), len(target)))
    keys = torch.rand(num_classes + 1, generator=generator, device=target.device)
    keys.index_fill_(0, torch.where(target >= 0, target, num_classes), 2.0)
    rows = keys[:num_classes].topk(kept).indices.sort().values
    place = torch.zeros(num_classes + 1, dtype=torch.int64, device=target.device)
    place.scatter_(0, rows, torch.arange(kept, device=target.device))
    return rows, torch.where(target >= 0, place[target.clamp_min(0)], target)
