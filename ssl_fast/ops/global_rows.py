"""The rows of all views and ranks as one matrix: where this rank's lie, and which row is whose positive."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ssl_fast.distributed import Group, all_gather_rows, gather_sizes, group_by_name
from ssl_fast.ops.classes import Classes, of_samples


class GlobalRows:
    """All ranks' rows in rank order, M of them; each rank's are its views, one after the other.

    Attributes:
        x: [M, D].
        mine: (begin, end) of this rank's R rows.
        classes: whose positives all rows of the class are; None for two views without labels.
        positive: [M] int64, the other view of every row's sample (of classes: `Classes.partner`).
    """

    def __init__(
        self,
        x: Tensor,  # [R, D]
        group: str,
        num_views: int = 2,
        labels: Tensor | None = None,  # [R] int64
    ) -> None:
        """`group` is the process group's name (what a registered op can carry), "" for this process alone."""
        self.group: Group = group_by_name(group) if group else None
        self.sizes = gather_sizes(len(x), self.group, x.device)
        self.x = x if self.group is None else all_gather_rows(x, self.group, self.sizes)
        begin = 0 if self.group is None else sum(self.sizes[: self.group.rank()])
        self.mine = (begin, begin + len(x))
        self.classes: Classes | None = None
        if labels is not None:
            self.classes = Classes.of(all_gather_rows(labels, self.group, self.sizes))
        elif num_views > 2:
            self.classes = of_samples(tuple(self.sizes), num_views, x.device)
        if self.classes is not None:
            self.positive = self.classes.partner
            return
        # On a GPU a cached index could be freed under a CUDA graph that still reads it.
        find = _positive_cached if x.device.type == "cpu" else _positive
        self.positive = find(tuple(self.sizes), x.device)

    def gather(self, *columns: Tensor) -> Sequence[Tensor]:
        """Numbers per local row, each [R], as numbers over all rows, each [M]: one message."""
        if self.group is None:
            return columns
        return all_gather_rows(torch.stack(columns, 1), self.group, self.sizes).T.contiguous().unbind(0)


def _positive(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    parts, begin = [], 0
    for size in sizes:
        parts.append(torch.arange(begin, begin + size, device=device).roll(size // 2))
        begin += size
    return torch.cat(parts)


_positive_cached = lru_cache(maxsize=8)(_positive)
