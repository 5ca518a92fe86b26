"""pytorch-metric-learning's losses: `from pytorch_metric_learning.losses import ArcFaceLoss` becomes
`from ssl_fast.dropin.metric_learning import ArcFaceLoss`.

Constructors, `loss(embeddings, labels)`, values, gradients and the keys and shapes of state dicts are theirs (2.9).
Losses of half-precision embeddings are computed and returned in fp32; labels are int64.

Regularisers are called as they are. Not served, and refused by ValueError: `indices_tuple` (miners), `ref_emb` and
`ref_labels`; a distance or reducer that is not the default (an instance of the default is taken); `collect_stats`.
"""

from ssl_fast.dropin.metric_learning.margins import ArcFaceLoss, CosFaceLoss, SubCenterArcFaceLoss
from ssl_fast.dropin.metric_learning.pairs import NTXentLoss, SupConLoss

__all__ = ["ArcFaceLoss", "CosFaceLoss", "NTXentLoss", "SubCenterArcFaceLoss", "SupConLoss"]
