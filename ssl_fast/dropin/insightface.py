"""insightface's recognition head (arcface_torch): change the imports from `losses` and `partial_fc_v2` to
`from ssl_fast.dropin.insightface import CombinedMarginLoss, PartialFC_V2`.

Constructors, `head(embeddings, labels)`, the start of the weights from a seed, their shards and the key of the state
dict are theirs. No GPU and no process group are needed; with a default process group its ranks hold the classes, as
there. The logits [N, C] are never there as a whole.

Not served: `interclass_filtering_threshold`, and any margin in `PartialFC_V2` but `CombinedMarginLoss`.
"""

import torch
from torch import Tensor, nn

from ssl_fast.distributed import rank as rank_in
from ssl_fast.distributed import world, world_size
from ssl_fast.ops.arcface import arcface, cosface


class CombinedMarginLoss(nn.Module):
    """The margins that `PartialFC_V2` trains with, and on logits by itself. As there:

    m1 = 1, m3 = 0: ArcFace, cos(theta + m2), with the derivative of cos(theta) (the margin is straight-through).
    m3 > 0: CosFace, cos(theta) - m3; m1 and m2 play no part.

    Args:
        s: scale.
        m1: 1 for ArcFace.
        m2: radians, added to the angle.
        m3: taken from the cosine.
        interclass_filtering_threshold: must be 0.

    Raises:
        ValueError: other margins, which there fail in the first step.

    Reference: Deng et al. 2019, arXiv:1801.07698, Eq. 4.
    """

    def __init__(self, s: float, m1: float, m2: float, m3: float, interclass_filtering_threshold: float = 0) -> None:
        super().__init__()
        if interclass_filtering_threshold > 0:
            raise ValueError("interclass_filtering_threshold > 0 is not served: all negatives count")
        if not (m3 > 0 or (m1 == 1 and m3 == 0)):
            raise ValueError(f"margins must have m3 > 0 (CosFace) or m1 = 1 and m3 = 0 (ArcFace), got {(m1, m2, m3)}")
        self.s, self.m1, self.m2, self.m3 = s, m1, m2, m3
        self.interclass_filtering_threshold = interclass_filtering_threshold

    def forward(
        self,
        logits: Tensor,  # [N, C] cosines
        labels: Tensor,  # [N] or [N, 1] int64, -1: none of these classes
    ) -> Tensor:
        """Scaled logits with the margin on the target, [N, C]; `PartialFC_V2` does without them."""
        labels = labels.reshape(-1, 1)
        cosine = logits.gather(1, labels.clamp_min(0))
        with torch.no_grad():
            margined = cosine - self.m3 if self.m3 > 0 else (cosine.clamp(-1, 1).acos() + self.m2).cos()
            change = torch.where(labels == -1, 0, margined - cosine)
        return logits.scatter_add(1, labels.clamp_min(0), change) * self.s


class PartialFC_V2(nn.Module):  # noqa: N801 (their name)
    """Class centres spread over the ranks, and the loss of all ranks' embeddings against them.

    Leave it out of DistributedDataParallel, as there: each rank's centres get the whole of their gradient, and
    embeddings `world_size` times theirs, which the averaging for the backbone undoes.

    Differences: batches of the ranks may differ in size, and from step to step. Samples of label -1 have no loss. A
    loss above 69 keeps its value (there it is cut at -log 1e-30; gradients are the same). Within 1e-6 of cosine 1
    ArcFace's target logit differs by at most 0.0015 s sin(m2). With `sample_rate` the centres of the batch and random
    others are taken, `ceil(sample_rate C)` and at least as many as there are samples (there `int(sample_rate C)`, or
    those of the batch alone if they are more): nothing is read back from the device.

    Args:
        margin_loss: a `CombinedMarginLoss`.
        embedding_size: D.
        num_classes: classes of all ranks.
        sample_rate: part of the classes that are compared in a step.
        fp16: taken for their sake: products have the embeddings' dtype and fp32 accumulation.

    Attributes:
        weight: [classes of this rank, D].

    Reference: An et al. 2022, arXiv:2203.15565.
    """

    def __init__(
        self,
        margin_loss: CombinedMarginLoss,
        embedding_size: int,
        num_classes: int,
        sample_rate: float = 1.0,
        fp16: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(margin_loss, CombinedMarginLoss):
            raise ValueError(f"margin_loss must be a CombinedMarginLoss of this module, got {margin_loss!r}")
        self.margin_softmax = margin_loss
        self.embedding_size, self.sample_rate, self.fp16 = embedding_size, sample_rate, fp16
        self.rank, self.world_size = rank_in(), world_size()
        each, over = divmod(num_classes, self.world_size)
        self.num_local = each + int(self.rank < over)
        self.class_start = each * self.rank + min(self.rank, over)
        self.weight = nn.Parameter(torch.normal(0, 0.01, (self.num_local, embedding_size)))

    def forward(
        self,
        local_embeddings: Tensor,  # [N, D]
        local_labels: Tensor,  # [N] or [N, 1], numbered over all ranks' classes
    ) -> Tensor:
        """The mean over all ranks' samples, the same on every rank."""
        labels, margin = local_labels.reshape(-1).long(), self.margin_softmax
        if margin.m3 > 0:
            return cosface(
                local_embeddings, self.weight, labels,
                margin=margin.m3, scale=margin.s, sample_rate=self.sample_rate, group=world(),
            )  # fmt: skip
        return arcface(
            local_embeddings, self.weight, labels, margin=margin.m2, margin_grad="straight_through",
            scale=margin.s, sample_rate=self.sample_rate, group=world(),
        )  # fmt: skip
