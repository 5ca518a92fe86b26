"""ArcFace, sub-center ArcFace and CosFace, as pytorch-metric-learning calls them."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.dropin.metric_learning.defaults import DefaultLoss, check_shapes
from ssl_fast.ops.arcface import arcface, cosface

_NO_LABEL = torch.iinfo(torch.int64).min  # no sample is ignored


class _MarginLoss(DefaultLoss):
    """Class centres W [D, C] and a margin.

    W is laid out so that its transpose is contiguous, which is how the op reads it. It follows the embeddings to
    their device, and to float64; to half precision it does not (there it does, for good).
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float,
        scale: float,
        sub_centers: int = 1,
        weight_init_func: Callable[[Tensor], Any] | None = None,
        weight_regularizer: Any = None,
        weight_reg_weight: float = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.num_classes, self.margin, self.scale, self.sub_centers = num_classes, margin, scale, sub_centers
        self.weight_regularizer, self.weight_reg_weight = weight_regularizer, weight_reg_weight
        first = torch.empty(embedding_size, num_classes * sub_centers)
        with torch.no_grad():
            (weight_init_func or nn.init.normal_)(first)
        self.W = nn.Parameter(first.t().contiguous().t())

    def _regularized(
        self,
        loss: Tensor,
        embeddings: Tensor,  # [N, D]
    ) -> Tensor:
        """The loss with what the regularisers say of the centres and of the embeddings."""
        if self.weight_regularizer is not None:
            loss = loss + self.weight_regularizer(self.W.t()) * self.weight_reg_weight
        return super()._regularized(loss, embeddings)

    def _centres(self, embeddings: Tensor) -> Tensor:
        """W as the op takes it, where the embeddings are: [C, S, D]."""
        self.cast_types(embeddings.dtype, embeddings.device)
        return self.W.t().reshape(self.num_classes, self.sub_centers, -1)

    def cast_types(self, dtype: torch.dtype, device: torch.device) -> None:
        """Moves W to the device, and to a wider dtype."""
        self.W.data = self.W.data.to(device, torch.promote_types(self.W.dtype, dtype))

    def get_cosine(
        self,
        embeddings: Tensor,  # [N, D]
    ) -> Tensor:
        """Cosines with the nearest centre of each class, [N, C]."""
        return self._cosines(embeddings).amax(2)

    def _cosines(
        self,
        embeddings: Tensor,  # [N, D]
    ) -> Tensor:
        """Cosines with all centres, [N, C, S]."""
        centres = F.normalize(self._centres(embeddings).to(embeddings.dtype), dim=2)
        return torch.einsum("nd,csd->ncs", F.normalize(embeddings, dim=1), centres)

    def get_logits(
        self,
        embeddings: Tensor,  # [N, D]
    ) -> Tensor:
        """Scaled cosines with the classes, without the margin, [N, C]."""
        return self.get_cosine(embeddings) * self.scale


class ArcFaceLoss(_MarginLoss):
    """ArcFace whose margin is in degrees, and monotone: behind pi - margin it is cos(theta) - margin sin(margin).

    Within 1e-6 of cosine 1 or -1 (1e-12 in float64) the op holds the sine at its value there: the target's logit
    differs by at most 0.0015 scale sin(margin) (1.5e-6 in float64), and the gradient is finite (there NaN at 1 itself).

    Args:
        num_classes: C.
        embedding_size: D.
        margin: degrees; the attribute is in radians, as there.
        scale: what cosines are multiplied by.
        options: `weight_init_func`, `weight_regularizer`, and see the module.

    Attributes:
        W: [D, C].

    Reference: Deng et al. 2019, arXiv:1801.07698, Eq. 3.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, margin: float = 28.6, scale: float = 64, **options: Any
    ) -> None:
        super().__init__(num_classes, embedding_size, math.radians(margin), scale, **options)

    def loss(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor,  # [N]
    ) -> Tensor:
        """The mean over the samples."""
        options: dict[str, Any] = {"margin": self.margin, "scale": self.scale, "ignore_index": _NO_LABEL}
        return arcface(embeddings, self._centres(embeddings), labels, monotone=True, **options)


class CosFaceLoss(_MarginLoss):
    """CosFace.

    Args:
        num_classes: C.
        embedding_size: D.
        margin: taken from the cosine.
        scale: what cosines are multiplied by.
        options: `weight_init_func`, `weight_regularizer`, and see the module.

    Attributes:
        W: [D, C].

    Reference: Wang et al. 2018, arXiv:1801.09414, Eq. 4.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, margin: float = 0.35, scale: float = 64, **options: Any
    ) -> None:
        super().__init__(num_classes, embedding_size, margin, scale, **options)

    def loss(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor,  # [N]
    ) -> Tensor:
        """The mean over the samples."""
        options: dict[str, Any] = {"margin": self.margin, "scale": self.scale, "ignore_index": _NO_LABEL}
        return cosface(embeddings, self._centres(embeddings), labels, **options)


class SubCenterArcFaceLoss(ArcFaceLoss):
    """ArcFace whose classes have several centres, of which the nearest counts.

    Args:
        num_classes: C.
        embedding_size: D.
        margin: degrees.
        scale: what cosines are multiplied by.
        sub_centers: S.
        options: `weight_init_func`, `weight_regularizer`, and see the module.

    Attributes:
        W: [D, C S], the centres of a class side by side.

    Reference: Deng et al. 2020, "Sub-center ArcFace", ECCV, Eq. 3.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 28.6,
        scale: float = 64,
        sub_centers: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, embedding_size, margin, scale, sub_centers=sub_centers, **options)

    @torch.no_grad()
    def get_outliers(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor,  # [N]
        threshold: float = 75,
        return_dominant_centers: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Samples far from the centre that most samples of their class are nearest to.

        Args:
            embeddings: [N, D].
            labels: [N].
            threshold: degrees beyond which a sample is an outlier.
            return_dominant_centers: taken for their sake: both are returned, as there.

        Returns:
            Numbers of the samples, class by class; and the dominant centres [D, C] (0 for classes without samples).
        """
        check_shapes(embeddings, labels)
        S, classes = self.sub_centers, torch.arange(self.num_classes, device=labels.device)
        own = self._cosines(embeddings)[torch.arange(len(labels), device=labels.device), labels]  # [N, S]
        votes = torch.bincount(labels * S + own.argmax(1), minlength=self.num_classes * S).view(-1, S)
        dominant = votes.argmax(1)  # [C]
        centres = self.W[:, classes * S + dominant].to(embeddings.dtype) * (votes.sum(1) > 0)
        far = own.gather(1, dominant[labels, None]).squeeze(1) < math.cos(math.radians(threshold))
        order = labels.argsort(stable=True)
        return order[far[order]], centres
