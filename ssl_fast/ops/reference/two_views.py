"""The rows of two views over all ranks, on the smaller side: the N x N Gram matrices or the D x D covariances."""

import torch
from torch import Tensor

from ssl_fast.distributed import Group, all_gather_rows, gather_sizes
from ssl_fast.ops.contract import widened


class TwoViews:
    """Two views of this rank's samples and what a loss over all ranks' samples needs of the others.

    With fewer rows than columns, N < D, every rank holds all rows (one gather) and works on its own rows of the Gram
    matrices. Otherwise rows stay where they are, and sums over them, columns and D x D products, are added up.

    Attributes:
        num_rows: N, the samples of all ranks.
        gram: whether N < D.
        views: two tensors [M, D] in at least fp32, the rows at hand: M = N when `gram`, else this rank's.
        mine: where this rank's rows lie in them.
    """

    def __init__(
        self,
        z1: Tensor,  # [n, D]
        z2: Tensor,  # [n, D]
        group: Group,
    ) -> None:
        sizes = gather_sizes(len(z1), group, z1.device)
        self.num_rows, self.gram, self.group = sum(sizes), sum(sizes) < z1.shape[1], group
        begin = 0
        z1, z2 = z1.detach(), z2.detach()
        if self.gram and group is not None:
            begin = sum(sizes[: group.rank()])
            gathered = all_gather_rows(torch.cat((z1, z2), 1), group, sizes)
            z1, z2 = torch.split(gathered, z1.shape[1], 1)
        self.mine = slice(begin, begin + sizes[0 if group is None else group.rank()])
        self.views = (widened(z1), widened(z2))

    def over_rows(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """Sums over the rows at hand made sums over the rows of all ranks."""
        return sums if self.gram else self.over_ranks(*sums)

    def over_ranks(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Each rank's parts, of any shapes and one dtype, added up: one message."""
        if self.group is None:
            return parts
        flat = torch.cat([part.reshape(-1) for part in parts])
        torch.distributed.all_reduce(flat, group=self.group)
        totals = torch.split(flat, [part.numel() for part in parts])
        return tuple(total.view(part.shape) for total, part in zip(totals, parts, strict=True))

    def centred(self) -> tuple[Tensor, Tensor]:
        """The views without the mean of each column over all ranks, [M, D] each."""
        first, second = self.over_rows(*(view.sum(0) for view in self.views))
        return self.views[0] - first / self.num_rows, self.views[1] - second / self.num_rows


def squared_norm(x: Tensor) -> Tensor:
    """The squares of all elements added up in fp64: []."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm.square()
