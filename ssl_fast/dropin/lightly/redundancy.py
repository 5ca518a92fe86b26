"""VICReg and Barlow Twins, as lightly calls them."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.distributed import Group, world
from ssl_fast.dropin.lightly.contrastive import _check_gather
from ssl_fast.ops.barlow_twins import barlow_twins
from ssl_fast.ops.contract import widened
from ssl_fast.ops.vicreg import vicreg


class VICRegLoss(nn.Module):
    """VICReg; lightly halves the variance term, and takes the invariance over this rank's rows alone.

    Embeddings may have dimensions between the first and the last: the loss is then the mean over these places.

    Args:
        lambda_param: coefficient of the invariance.
        mu_param: coefficient of the variance.
        nu_param: coefficient of the covariance.
        gather_distributed: take variances and covariances over the rows of all ranks.
        eps: added to the variances, positive.

    Reference: Bardes et al. 2022, arXiv:2105.04906, Algorithm 1.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 0.0001,
    ) -> None:
        super().__init__()
        _check_gather(gather_distributed)
        self.lambda_param, self.mu_param, self.nu_param = lambda_param, mu_param, nu_param
        self.gather_distributed, self.eps = gather_distributed, eps

    def forward(
        self,
        z_a: Tensor,  # [N, ..., D]
        z_b: Tensor,  # [N, ..., D]
    ) -> Tensor:
        """The loss: on every rank with its own invariance."""
        if z_a.shape != z_b.shape:
            raise ValueError(f"z_a and z_b must have same shape but found {z_a.shape} and {z_b.shape}.")
        if z_a.dim() < 2 or len(z_a) <= 1:
            raise ValueError(f"z_a and z_b must be matrices with batch size > 1 but found {list(z_a.shape)}")
        group = world() if self.gather_distributed else None
        places = zip(*(z.flatten(1, -2).unbind(1) if z.dim() > 2 else (z,) for z in (z_a, z_b)), strict=True)
        losses = [self._of_place(one, other, group) for one, other in places]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _of_place(
        self,
        one: Tensor,  # [N, D]
        other: Tensor,  # [N, D]
        group: Group,
    ) -> Tensor:
        rest: dict[str, Any] = {"variance": self.mu_param / 2, "covariance": self.nu_param, "eps": self.eps}
        if group is None:
            return vicreg(one, other, invariance=self.lambda_param, **rest)
        near = F.mse_loss(widened(one), widened(other))
        return vicreg(one, other, invariance=0.0, **rest, group=group) + self.lambda_param * near


class BarlowTwinsLoss(nn.Module):
    """Barlow Twins.

    With `gather_distributed` on several ranks lightly averages their correlation matrices, each of columns that are
    normalised over its rank's rows alone. That is computed here as there, with the D x D matrix, and not by the op;
    `ssl_fast.barlow_twins(group=...)` normalises over all rows, as one rank with the joined batch would.

    Args:
        lambda_param: coefficient of the off-diagonal squares.
        gather_distributed: average the correlations of all ranks.

    Reference: Zbontar et al. 2021, arXiv:2103.03230, Algorithm 1.
    """

    def __init__(self, lambda_param: float = 5e-3, gather_distributed: bool = False) -> None:
        super().__init__()
        _check_gather(gather_distributed)
        self.lambda_param, self.gather_distributed = lambda_param, gather_distributed

    def forward(
        self,
        z_a: Tensor,  # [N, D]
        z_b: Tensor,  # [N, D]
    ) -> Tensor:
        """The loss."""
        if len(z_a) <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {z_a.shape}")
        group = world() if self.gather_distributed else None
        if group is None:
            return barlow_twins(z_a, z_b, lambd=self.lambda_param)
        correlation = _mean_over_ranks(_correlation(z_a, z_b), group)
        on_diagonal = correlation.diagonal()
        off_diagonal = correlation - on_diagonal.diag()
        return (on_diagonal - 1).square().sum() + self.lambda_param * off_diagonal.square().sum()


def _correlation(
    z_a: Tensor,  # [N, D]
    z_b: Tensor,  # [N, D]
) -> Tensor:
    """The correlation of the columns over this rank's rows, [D, D]."""
    with torch.autocast(z_a.device.type, enabled=False):
        one, other = (F.batch_norm(widened(z), None, None, training=True) for z in (z_a, z_b))
        return one.T @ other / len(z_a)


def _mean_over_ranks(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The mean over the ranks; a rank's part gets the gradient of all ranks' losses, which are equal: its own."""
    mean = x.detach().clone()
    dist.all_reduce(mean, group=group)
    return x + (mean / dist.get_world_size(group) - x.detach())
