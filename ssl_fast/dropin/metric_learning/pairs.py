"""SupCon and NT-Xent over labels, as pytorch-metric-learning defines them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.dropin.metric_learning.defaults import DefaultLoss
from ssl_fast.ops.contract import widened
from ssl_fast.ops.supcon import supcon

_NO_LABEL = torch.iinfo(torch.int64).min  # every label a user may have is a class here


class SupConLoss(DefaultLoss):
    """SupCon, averaged over the rows whose loss is above zero (AvgNonZeroReducer); 0 where all labels are the same.

    A loss that rounds to zero beside 1 leaves the average. There that depends on the rounding of the logits, so that
    averages may differ by the share of such rows where a batch is all but solved.

    Args:
        temperature: of the softmax, positive.
        options: see the module.

    Reference: Khosla et al. 2020, arXiv:2004.11362, Eq. 2.
    """

    reducer_name = "AvgNonZeroReducer"

    def __init__(self, temperature: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.temperature = temperature

    def loss(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor,  # [N]
    ) -> Tensor:
        """The average over the rows that count."""
        rows = supcon(embeddings, labels, temperature=self.temperature, ignore_index=_NO_LABEL, reduction="none")
        above_zero = (rows > torch.finfo(rows.dtype).eps) & (labels != labels[:1]).any()
        return torch.where(above_zero, rows, 0).sum() / above_zero.sum().clamp_min(1)


class NTXentLoss(DefaultLoss):
    """-log( exp(s_ap) / (exp(s_ap) + sum over the rows n of other labels of exp(s_an)) ), averaged over all pairs a, p
    of one label; 0 where all labels are the same.

    Where no label occurs more than twice, as with two views of every sample, this is NT-Xent and no N x N matrix is
    made (one number is read from the device to see that). Other labels go through the N x N matrix in plain torch. A
    pair's loss above 87 in fp32 (708 in float64) is what it is, with its gradient; there it is cut off.

    Args:
        temperature: of the softmax, positive.
        options: see the module.

    Reference: Chen et al. 2020, arXiv:2002.05709, Eq. 1; Oord et al. 2018, arXiv:1807.03748, Eq. 4.
    """

    def __init__(self, temperature: float = 0.07, **options: Any) -> None:
        super().__init__(**options)
        self.temperature = temperature

    def loss(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor,  # [N]
    ) -> Tensor:
        """The average over all pairs."""
        ordered = labels.sort().values
        if not bool((ordered[2:] == ordered[:-2]).any()):
            return supcon(embeddings, labels, temperature=self.temperature, ignore_index=_NO_LABEL)
        return self._dense(embeddings, labels)

    def _dense(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor,  # [N]
    ) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            z = F.normalize(widened(embeddings), dim=1)
            logits = z @ z.T / self.temperature
        same = labels[:, None] == labels
        pair = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        # The lowest number, not minus infinity: without a row of another label the softplus is 0, and not NaN.
        others = logits.masked_fill(same, torch.finfo(logits.dtype).min).logsumexp(1, keepdim=True)
        losses = F.softplus(torch.where(pair, others - logits, -torch.inf), threshold=60)
        return losses.sum() / pair.sum().clamp_min(1)
