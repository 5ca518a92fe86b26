"""open_clip's losses: change `from open_clip.loss import ClipLoss` to `from ssl_fast.dropin.open_clip import ClipLoss`.

Constructors, forward calls, values and gradients are open_clip's (3.3), and features are taken as they come, as there:
the model makes unit rows of them. Losses of half-precision features are computed and returned in fp32.

With `world_size > 1` the ranks are those of the default process group. Gradients of features are on each rank what
they are there; those of `logit_scale` and `logit_bias` may be split over the ranks in another way, and are the same
once DistributedDataParallel has averaged them.

Not served: Horovod, `dist_impl` as a choice (one gather serves all four), the other losses of that module.
"""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from ssl_fast.distributed import Group, world
from ssl_fast.ops.clip_loss import clip_loss
from ssl_fast.ops.siglip_loss import siglip_loss

Loss = Tensor | dict[str, Tensor]
DIST_IMPLS = ("bidir", "shift", "reduce", "gather")


class ClipLoss(nn.Module):
    """CLIP's symmetric cross-entropy.

    `local_loss` gives each rank the mean over its own pairs, without it all ranks have the mean over all pairs.
    Without `gather_with_grad` a rank's features have their gradient of that mean, and with it `world_size` times that:
    the averaging of DistributedDataParallel then gives the gradient of the mean.

    Not served: `local_loss` without `gather_with_grad`, whose gradients leave out what other ranks' pairs say of a
    feature.

    Args:
        local_loss: see above.
        gather_with_grad: see above.
        cache_labels: taken for open_clip's sake: there are no labels.
        rank: this rank.
        world_size: number of ranks.
        use_horovod: must be False.

    Reference: Radford et al. 2021, arXiv:2103.00020, Fig. 3.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("use_horovod=True is not served: ranks are those of torch.distributed")
        if world_size > 1 and local_loss and not gather_with_grad:
            raise ValueError(
                "local_loss=True without gather_with_grad=True is not served: its gradients are not those of the loss"
            )
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size, self.use_horovod = rank, world_size, use_horovod

    def forward(
        self,
        image_features: Tensor,  # [N, D]
        text_features: Tensor,  # [N, D]
        logit_scale: Tensor | float,  # []
        logit_bias: Tensor | float | None = None,  # []
        output_dict: bool = False,
    ) -> Loss:
        """The loss; under "contrastive_loss" with `output_dict`. A bias changes nothing, and has the gradient 0."""
        group, scale = _group(self.world_size), _scalar(logit_scale)
        if group is None:
            loss = clip_loss(image_features, text_features, scale, normalize=False)
        elif self.local_loss:
            rows = clip_loss(image_features, text_features, scale, normalize=False, group=group, reduction="none")
            loss = rows.mean()
        else:
            reduce = "mean" if self.gather_with_grad else "sum"
            if isinstance(scale, Tensor) and not self.gather_with_grad:
                # Under "sum" a rank has its share of this gradient; DDP averages, and it is the whole that is wanted.
                scale = scale.detach() + (scale - scale.detach()) * self.world_size
            loss = clip_loss(image_features, text_features, scale, normalize=False, group=group, grad_reduce=reduce)
        if isinstance(logit_bias, Tensor):
            loss = loss + 0 * _scalar(logit_bias)
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """SigLIP's sigmoid loss over all pairs of the ranks; each rank returns the mean over its own images.

    Args:
        cache_labels: taken for open_clip's sake: there are no labels.
        rank: this rank.
        world_size: number of ranks.
        dist_impl: "bidir", "shift", "reduce", "gather" or None: all the same here.

    Reference: Zhai et al. 2023, arXiv:2303.15343, Eq. 1.
    """

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ) -> None:
        super().__init__()
        self.dist_impl = dist_impl or "bidir"
        if self.dist_impl not in DIST_IMPLS:
            raise ValueError(f"dist_impl must be one of {', '.join(DIST_IMPLS)}, got {dist_impl!r}")
        self.cache_labels, self.rank, self.world_size = cache_labels, rank, world_size

    def forward(
        self,
        image_features: Tensor,  # [N, D]
        text_features: Tensor,  # [N, D]
        logit_scale: Tensor | float,  # []
        logit_bias: Tensor | float | None,  # []
        output_dict: bool = False,
    ) -> Loss:
        """The loss; under "contrastive_loss" with `output_dict`. No bias is a bias of 0."""
        group = _group(self.world_size)
        scale, bias = _scalar(logit_scale), 0.0 if logit_bias is None else _scalar(logit_bias)
        if group is None:
            loss = siglip_loss(image_features, text_features, scale, bias, normalize=False)
        else:
            options: dict[str, Any] = {"normalize": False, "group": group, "reduction": "none"}
            loss = siglip_loss(image_features, text_features, scale, bias, **options).mean()
        return {"contrastive_loss": loss} if output_dict else loss


def _group(world_size: int) -> Group:
    """All ranks, where there are several; ValueError where that is not their number."""
    if world_size == 1:
        return None
    group = world()
    found = 1 if group is None else dist.get_world_size(group)
    if found != world_size:
        raise ValueError(
            f"world_size must be the number of ranks of the default process group, {found}, got {world_size}"
        )
    return group


def _scalar(number: Tensor | float) -> Tensor | float:
    """[1] as []."""
    return number.reshape(()) if isinstance(number, Tensor) and number.numel() == 1 else number
