"""The class centres of a margin loss as a module, on one rank or spread over several; with the losses' averages."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssl_fast.distributed import Group, all_gather_rows, rank, world_size
from ssl_fast.ops.adaface import adaface, norm_statistics
from ssl_fast.ops.arcface import arcface, combined_margin, cosface
from ssl_fast.ops.curricularface import curricularface, mean_target_cosine

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "arcface": arcface,
    "cosface": cosface,
    "combined_margin": combined_margin,
    "adaface": adaface,
    "curricularface": curricularface,
}


class MarginHead(nn.Module):
    """Class centres and the loss of embeddings against them.

    With `group`, each rank holds an equal share of the classes (some one more): give it no DDP of its own, and let
    DDP average the backbone alone. A rank sees all ranks' embeddings; weights and their gradients never travel. The
    state_dict holds the centres of all ranks, whatever their number: taking it is a collective, as loading is not.

    Attributes:
        weight: [C of this rank, D], or [C of this rank, S, D].
        norm_mean, norm_std: [], of "adaface".
        hardness: [], t of "curricularface".

    Example:
        >>> head = MarginHead(8, 100, loss="cosface", margin=0.3, sub_centers=3)
        >>> head(torch.randn(4, 8), torch.tensor([1, 5, 99, -1])).shape
        torch.Size([])

    References: `ops/arcface.py`, `ops/adaface.py`, `ops/curricularface.py`; sampling: An et al. 2022, arXiv:2203.15565.
    """

    weight: nn.Parameter
    norm_mean: Tensor
    norm_std: Tensor
    hardness: Tensor

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        loss: str = "arcface",
        sub_centers: int = 1,
        momentum: float = 0.99,
        ignore_index: int = -1,
        group: Group = None,
        **options: Any,
    ) -> None:
        """
        Args:
            dim: embedding dimension D.
            num_classes: classes of all ranks together.
            loss: "arcface", "cosface", "combined_margin", "adaface" or "curricularface".
            sub_centers: centres S of a class.
            momentum: of the averages of "adaface" and "curricularface": what is kept of the old value each step.
            ignore_index: label of samples without a class.
            group: process group over which the classes are spread. None: all of them here.
            options: of the loss: `margin` (or `m1`, `m2`, `m3`), `scale`, `sample_rate`, `generator`, `reduction`,
                `impl` ...

        Raises:
            ValueError: no such loss, or a number that is not positive.
        """
        super().__init__()
        if loss not in _LOSSES:
            raise ValueError(f"loss must be one of {', '.join(_LOSSES)}, got {loss!r}")
        if min(dim, num_classes, sub_centers) < 1:
            raise ValueError(
                f"dim, num_classes and sub_centers must be positive, got {dim}, {num_classes} and {sub_centers}"
            )
        self.loss, self.momentum, self.num_classes = loss, momentum, num_classes
        self.options = {"ignore_index": ignore_index, "group": group, **options}
        place, ranks = rank(group) if group else 0, world_size(group) if group else 1
        self.classes = range(num_classes * place // ranks, num_classes * (place + 1) // ranks)
        shape = (num_classes, dim) if sub_centers == 1 else (num_classes, sub_centers, dim)
        # All ranks draw all classes, with one seed the same: the start does not depend on the number of ranks.
        whole = torch.randn(shape) * 0.01
        self.weight = nn.Parameter(whole[self.classes.start : self.classes.stop].clone())
        if loss == "adaface":
            self.register_buffer("norm_mean", torch.tensor(20.0))
            self.register_buffer("norm_std", torch.tensor(100.0))
        elif loss == "curricularface":
            self.register_buffer("hardness", torch.tensor(0.0))

    def forward(
        self,
        x: Tensor,  # [N, D]
        labels: Tensor,  # [N] int64
    ) -> Tensor:
        """The loss of embeddings and labels; in training mode the averages are updated first."""
        if self.training:
            self._update_averages(x, labels)
        names = {"adaface": ("norm_mean", "norm_std"), "curricularface": ("hardness",)}.get(self.loss, ())
        averages = {name: getattr(self, name).clone() for name in names}
        return _LOSSES[self.loss](x, self.weight, labels, **averages, **self.options)

    @torch.no_grad()
    def _update_averages(
        self,
        x: Tensor,  # [N, D]
        labels: Tensor,  # [N]
    ) -> None:
        group, step = self.options["group"], 1 - self.momentum
        if self.loss == "adaface":
            count, mean, std = norm_statistics(x, group)
            # One row has no deviation, and no rows have no mean.
            self.norm_mean.lerp_(mean.to(self.norm_mean), torch.where(count > 0, step, 0.0).to(self.norm_mean))
            self.norm_std.lerp_(std.to(self.norm_std), torch.where(count > 1, step, 0.0).to(self.norm_std))
        elif self.loss == "curricularface":
            mean = mean_target_cosine(x, self.weight, labels, self.options["ignore_index"], group)
            mean = torch.where(mean.isnan(), self.hardness, mean.to(self.hardness))  # no sample has a class
            self.hardness.lerp_(mean, step)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.options["group"] is not None:
            destination[prefix + "weight"] = all_gather_rows(self.weight, self.options["group"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        name = prefix + "weight"
        whole = state_dict.get(name)
        if whole is not None and len(whole) == self.num_classes:
            state_dict = {**state_dict, name: whole[self.classes.start : self.classes.stop]}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"num_classes={self.num_classes}, loss={self.loss!r}, weight={list(self.weight.shape)}"
