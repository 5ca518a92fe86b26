"""JPEGs decoded smaller where every drawn crop allows it: by how much, and the crops on the smaller picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.views import View

_SHRINKS = (8, 4, 2)  # what the inverse cosine transform can leave out
_ROOM = 2.0  # a shrunk crop is at least so many times its view: moving it to whole pixels then moves little


def shrinks(
    table: Tensor,  # [N, V, P]
    views: Sequence[View],  # V
) -> NDArray[np.int64]:  # [N] 1, 2, 4 or 8
    """The largest factor by which all crops of a sample can be shrunk and still be twice as large as their views."""
    wanted = torch.tensor([view.size for view in views], dtype=torch.float32)
    room = (table[:, :, 2:4].amin(dim=2) / wanted).amin(dim=1).numpy()  # [N]
    return np.select([room >= _ROOM * by for by in _SHRINKS], _SHRINKS, 1).astype(np.int64)


def on_smaller(
    table: Tensor,  # [N, V, P] for pictures of `sizes`
    sizes: NDArray[np.int64],  # [N, 2] (H, W)
    images: Sequence[NDArray[np.uint8]],  # N of [H', W', C]
) -> Tensor:  # [N, V, P]
    """The table with its crops moved to the pictures as they were decoded, on whole pixels."""
    extents = torch.tensor([image.shape[:2] for image in images], dtype=torch.float64).view(-1, 1, 2)
    ratio = extents / torch.from_numpy(sizes).double().view(-1, 1, 2)
    table = table.clone()
    begin = (table[..., :2].double() * ratio).round()
    extent = (table[..., 2:4].double() * ratio).round().clamp(min=1)
    extent = torch.minimum(extent, extents)
    table[..., :2], table[..., 2:4] = torch.minimum(begin, extents - extent).float(), extent.float()
    return table
