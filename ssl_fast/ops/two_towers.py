"""What the losses over pairs of two towers share: checks of their arguments, and the pairs of all ranks.

Letters: N pairs of this rank, M pairs of all ranks, D embedding.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_fast.distributed import Group, all_gather_rows, gather_sizes, group_by_name
from ssl_fast.ops import contract


def check_towers(
    first: Tensor,  # [N, D]
    second: Tensor,  # [N, D]
    first_name: str = "image",
    second_name: str = "text",
) -> tuple[Tensor, Tensor]:
    """Both towers' rows in one dtype, the wider of theirs; ValueError unless they are matrices of one shape."""
    contract.check_pair((first_name, second_name), first, second)
    return contract.of_one_dtype(first, second)


def split_number(name: str, value: float | Tensor, positive: bool) -> tuple[Tensor | None, float]:
    """A number that may be learned as (tensor, 0.0) or (None, number). A tensor's value is not read: that would wait.

    Raises:
        ValueError: a number that is not positive (or not finite) where it must be, or a tensor that is not a
            floating-point scalar.
    """
    if isinstance(value, Tensor):
        if value.dim() != 0 or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a number or a floating-point tensor of shape [], "
                f"got {value.dtype} of shape {list(value.shape)}"
            )
        return value, 0.0
    if not math.isfinite(value) or (positive and value <= 0):
        raise ValueError(f"{name} must be {'positive and ' if positive else ''}finite, got {value}")
    return None, float(value)


def number_beside(
    tensor: Tensor | None,  # []
    number: float,
    rows: Tensor,  # [N, D]
) -> Tensor | float:
    """What the kernels take: the number, or the tensor beside `rows` in at least fp32."""
    if tensor is None:
        return number
    return tensor.detach().to(rows.device, torch.promote_types(rows.dtype, torch.float32))


class GlobalPairs:
    """The pairs of all ranks in rank order, M of them: one message for both towers.

    Attributes:
        first: [M, D].
        second: [M, D].
        mine: (begin, end) of this rank's N pairs.
    """

    def __init__(
        self,
        first: Tensor,  # [N, D]
        second: Tensor,  # [N, D]
        group: str,
    ) -> None:
        """`group` is the process group's name (what a registered op can carry), "" for this process alone."""
        self.group: Group = group_by_name(group) if group else None
        self.sizes = gather_sizes(len(first), self.group, first.device)
        self.first, self.second, self.mine = first.detach(), second.detach(), (0, len(first))
        if self.group is not None:
            both = all_gather_rows(torch.cat((first, second), 1), self.group, self.sizes)  # [M, 2 D]
            self.first, self.second = (half.contiguous() for half in both.chunk(2, 1))
            begin = sum(self.sizes[: self.group.rank()])
            self.mine = (begin, begin + len(first))

    def gather(self, *columns: Tensor) -> Sequence[Tensor]:
        """Numbers per local pair, each [N], as numbers over all pairs, each [M]: one message."""
        if self.group is None:
            return columns
        return all_gather_rows(torch.stack(columns, 1), self.group, self.sizes).T.contiguous().unbind(0)
