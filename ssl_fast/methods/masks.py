"""Which patches are hidden from a network: at random (MAE) or in blocks (BEiT, iBOT, DINOv2).

Made on the device of the sample numbers without waiting for it, each row a function of (key, sample) alone: neither the
batch's composition, nor ranks, nor microbatches change a sample's mask.
"""

import math

import torch
from torch import Tensor

from ssl_fast.methods.philox import uniforms

BLOCKS = 16  # drawn for each mask; half of the patches are covered by far fewer


def random_order(
    index: Tensor,  # [N] int64
    key: int,
    num_patches: int,
) -> Tensor:  # [N, P] int64
    """A random order of the patches of each sample; the first ones are those that are kept.

    Reference: He et al. 2021, arXiv:2111.06377, section 3 ("Simple implementation").
    """
    return uniforms(index, key, num_patches).argsort(dim=1, stable=True)


@torch.no_grad()
def block_masks(
    index: Tensor,  # [N] int64
    key: int,
    grid: tuple[int, int],
    *,
    num_views: int = 2,
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    aspect: float = 0.3,
    smallest: int = 4,
) -> Tensor:  # [N, V, P] bool
    """Masks made of blocks: True where a patch is hidden.

    A view is masked with `probability`; then round(P u) of its patches are, u uniform in `ratio`, exactly: blocks are
    laid one after the other until there are so many, and the last one is cut, from below or from above. The area of a
    block is uniform between `smallest` and that number, the logarithm of its height / width between those of `aspect`
    and 1 / aspect. (The papers' loop shrinks blocks and tries again to meet the number, and may miss it by a few
    patches; DINOv2 masks exactly half of a batch, with ratios spread evenly over it.)

    Args:
        grid: rows and columns of patches; P is their product.
        num_views: V.
        smallest: number of patches.

    Reference: Bao et al. 2021, "BEiT", arXiv:2106.08254, Algorithm 1; Zhou et al. 2021, "iBOT", arXiv:2111.07832,
    appendix; Oquab et al. 2023, "DINOv2", arXiv:2304.07193, and the authors' default configuration.
    """
    rows, columns = grid
    num_patches, device = rows * columns, index.device
    numbers = uniforms(index, key, num_views * (3 + 4 * BLOCKS)).view(len(index) * num_views, 3 + 4 * BLOCKS)
    area, shape, vertical, horizontal = numbers[:, 3:].view(-1, BLOCKS, 4).unbind(2)  # [NV, BLOCKS] each
    wanted = ((ratio[0] + (ratio[1] - ratio[0]) * numbers[:, 1]) * num_patches).round()
    wanted = wanted * (numbers[:, 0] < probability)  # [NV]

    area = smallest + area * (wanted[:, None] - smallest).clamp_min(0)
    shape = ((1 - 2 * shape) * math.log(aspect)).exp()  # height / width
    height = (area * shape).sqrt().round().clamp(1, rows)
    width = (area / shape).sqrt().round().clamp(1, columns)
    inside_rows = _between(vertical, height, rows)[..., :, None]  # [NV, BLOCKS, H, 1]
    inside_columns = _between(horizontal, width, columns)[..., None, :]  # [NV, BLOCKS, 1, W]
    number = torch.arange(BLOCKS, dtype=torch.uint8, device=device)[:, None, None]
    first = torch.where(inside_rows & inside_columns, number, BLOCKS).amin(1).flatten(1)  # the first block on a patch

    place = torch.arange(num_patches, device=device)
    order = first.long() * num_patches + torch.where(numbers[:, 2:3] < 0.5, place, num_patches - 1 - place)
    last = order.sort(dim=1).values.gather(1, (wanted[:, None].long() - 1).clamp_min(0))
    masks = (order <= last) & (wanted > 0)[:, None]
    return masks.view(len(index), num_views, num_patches)


def _between(position: Tensor, length: Tensor, size: int) -> Tensor:
    """Which of `size` places lie in a stretch of `length` at a uniform `position` in [0, 1), [..., size]."""
    begin = (position * (size - length + 1)).floor()[..., None]
    place = torch.arange(size, device=position.device)
    return (place >= begin) & (place < begin + length[..., None])
