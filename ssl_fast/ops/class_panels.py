"""What the implementations of margin softmax share: the negatives' rule, panels of classes, the weights of rows.

Letters: M rows, C classes of S centres each, B classes of a panel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

NEVER = -1e30  # a cell that takes no part; finite, so that 0 times it is 0
_PANEL_BYTES = 32 << 20
_ALIGNED = 128  # classes; a panel holds a multiple of them where it can


@dataclass
class Negatives:
    """How a negative cosine c becomes a logit: scale f(c), with f = c (hardness + c) above the threshold, else c."""

    scale: float | Tensor  # []
    threshold: Tensor | None  # [M]
    hardness: float | Tensor  # []


def panels(num_rows: int, num_classes: int, num_centres: int, itemsize: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of classes whose cosines with all rows take at most 32 MiB, or of one class if that takes more."""
    most = max(1, _PANEL_BYTES // max(1, num_rows * num_centres * itemsize))
    most = max(min(most, _ALIGNED), most // _ALIGNED * _ALIGNED)
    for begin in range(0, num_classes, most):
        yield begin, min(num_classes, begin + most)


def row_weights(
    lse: Tensor,  # [M]
    phi: Tensor,  # [M]
    slope: Tensor,  # [M]
    scale: float | Tensor,
    row_weight: Tensor,  # [M]
) -> tuple[Tensor, Tensor]:
    """coef and pull, each [M], of sum_i row_weight_i softplus(lse_i - scale phi_i): no 1 - p_target to cancel."""
    coef = row_weight * (lse - scale * phi).sigmoid()
    return coef, coef * slope


def softplus(above: Tensor) -> Tensor:
    """log(1 + e^above)."""
    return F.softplus(above, threshold=60)
