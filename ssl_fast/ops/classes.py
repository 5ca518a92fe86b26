"""Rows that share a label: who is whose positive, in a form that the kernels need no second look at.

Everything is made by sorting, so nothing has a size that depends on the labels and no GPU is waited for.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

LEFT_OUT = torch.iinfo(torch.int64).min  # the label of rows that take no part at all


@dataclass(frozen=True)
class Classes:
    """The classes of M rows.

    A class of two rows is a pair, as the two views of NT-Xent are: its positive stays out of the sums, so that
    nothing cancels when the pair aligns. The loss of a row with two or more positives is at least the log of their
    number, and keeps its digits without that.

    Attributes:
        ids: [M] int64, the same number in [0, M) for all rows of a class; -1 for rows that take no part.
        num_positives: [M] int64, the other rows of the class.
        partner: [M] int64, the positive of a row that has exactly one, else the row itself.
    """

    ids: Tensor
    num_positives: Tensor
    partner: Tensor

    @staticmethod
    def of(labels: Tensor) -> "Classes":  # [M] int64
        """Rows of equal labels are of one class; `LEFT_OUT` takes no part."""
        sorted_labels, order = labels.sort(stable=True)
        begin = torch.searchsorted(sorted_labels, labels)
        count = torch.searchsorted(sorted_labels, labels, right=True) - begin
        left_out = labels == LEFT_OUT
        row = torch.arange(len(labels), device=labels.device)
        # Of two rows a, b the partner of either is a + b minus itself.
        following = order[(begin + 1).clamp_max_(max(len(labels) - 1, 0))]
        partner = torch.where((count == 2) & ~left_out, order[begin] + following - row, row)
        return Classes(begin.masked_fill(left_out, -1), (count - 1).masked_fill_(left_out, 0), partner)


def _of_samples(sizes: tuple[int, ...], num_views: int, device: torch.device) -> Classes:
    """Every sample a class, where each rank's rows (`sizes` of them) are its views one after the other."""
    parts, begin = [], 0
    for size in sizes:
        num_samples = size // num_views
        parts.append(torch.arange(begin, begin + num_samples, device=device).repeat(num_views))
        begin += num_samples
    return Classes.of(torch.cat(parts))


_of_samples_cached = lru_cache(maxsize=8)(_of_samples)


def of_samples(sizes: tuple[int, ...], num_views: int, device: torch.device) -> Classes:
    """`_of_samples`, kept for the next call of these sizes on a CPU.

    On a GPU a cached index could be freed under a CUDA graph that still reads it.
    """
    find = _of_samples_cached if device.type == "cpu" else _of_samples
    return find(sizes, num_views, device)
