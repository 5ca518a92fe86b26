r"""AdaFace: margins that grow with the length of the embedding, a measure of image quality.

    q_i = clip( (|x_i| - mean) / (std / h), -1, 1 ),   phi_i = cos(theta_i - m q_i) - (m q_i + m)

with mean and std of the lengths over the batches, as a moving average. No gradient flows through q.

Letters: N samples, C classes, S centres of a class, D embedding.

Reference: Kim et al. 2022, "AdaFace: Quality Adaptive Margin for Face Recognition", arXiv:2204.00964, Eq. 12-14.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_fast.distributed import Group
from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import choose
from ssl_fast.ops.margin_loss import margin_loss
from ssl_fast.ops.margin_softmax import margin_softmax_reference
from ssl_fast.ops.margins import Margin


def adaface_reference(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    labels: Tensor,  # [N] int64
    *,
    norm_mean: Tensor,  # []
    norm_std: Tensor,  # []
    margin: float = 0.4,
    concentration: float = 0.333,
    **options: Any,
) -> Tensor:
    """The equation in plain torch with logits [N, C]; `options` are those of `margin_softmax_reference`."""
    rows = adaface_margins(x, norm_mean, norm_std, margin, concentration)
    return margin_softmax_reference(x, weight, labels, Margin(), row_margins=rows, **options)


def adaface_margins(
    x: Tensor,  # [N, D]
    norm_mean: Tensor,  # []
    norm_std: Tensor,  # []
    margin: float,
    concentration: float,
) -> Tensor:
    """What is added to each sample's angle and taken from its cosine, [2, N]."""
    norms = contract.widened(x.detach()).norm(dim=1).clamp(1e-3, 100)
    deviation = norm_std.to(norms.dtype) + 1e-3
    quality = ((norms - norm_mean) / deviation * concentration).clamp(-1, 1)
    return torch.stack((-margin * quality, margin * quality + margin))


def _row_margins(
    x: Tensor,  # [N, D]
    norm_mean: Tensor,  # []
    norm_std: Tensor,  # []
    margin: float,
    concentration: float,
    impl: str,
) -> Tensor:
    """The same by the kernels, where they have it: a dozen small operations in one."""
    contract.check_rows("x", x)
    if contract.plainly():
        kernel = choose("margin_softmax", impl, x)
        if hasattr(kernel, "adaface_margins"):
            found: Tensor = kernel.adaface_margins(x, float(norm_mean), float(norm_std), margin, concentration)
            return found
    return adaface_margins(x, norm_mean, norm_std, margin, concentration)


@torch.no_grad()
def norm_statistics(
    x: Tensor,  # [N, D]
    group: Group = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and standard deviation (of a sample) of the lengths of all ranks' rows, each [], float64."""
    norms = contract.widened(x).norm(dim=1).clamp(1e-3, 100).double()
    sums = torch.stack((norms.new_tensor(float(len(norms))), norms.sum(), norms.square().sum()))
    if group is not None:
        dist.all_reduce(sums, group=group)
    count, total, squares = sums
    mean = total / count.clamp_min(1)
    return count, mean, ((squares - total * mean) / (count - 1).clamp_min(1)).clamp_min(0).sqrt()


def adaface(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    labels: Tensor,  # [N] int64
    *,
    norm_mean: Tensor,  # []
    norm_std: Tensor,  # []
    margin: float = 0.4,
    concentration: float = 0.333,
    **options: Any,
) -> Tensor:
    """Margins that depend on the length of each embedding. `MarginHead(loss="adaface")` keeps the averages.

    Args:
        x: embeddings, [N, D], not normalised: their lengths count.
        weight: class centres, [C, D] or [C, S, D].
        labels: classes of the samples, [N] int64.
        norm_mean: moving average of the embeddings' length, [].
        norm_std: moving average of its standard deviation, [].
        margin: m, radians and cosine.
        concentration: h; lengths within std / h of the mean get margins between the extremes.
        options: as `arcface` has them, from `scale` on.

    Returns:
        0-dim tensor, or [N].

    Raises:
        ValueError, RuntimeError: as `arcface` does.

    Example:
        >>> x, labels = torch.eye(3), torch.arange(3)
        >>> mean, std = torch.tensor(1.0), torch.tensor(0.1)
        >>> # Of average length: cos(theta) - m.
        >>> round(adaface(x, x, labels, norm_mean=mean, norm_std=std, margin=1.0, scale=1.0).item(), 3)
        1.099

    Reference: Kim et al. 2022, arXiv:2204.00964, Eq. 12-14.
    """
    rows = _row_margins(x, norm_mean, norm_std, margin, concentration, options.get("impl", "auto"))
    return margin_loss(x, weight, labels, Margin(), row_margins=rows, **options)
