"""Supervised classification on top of a backbone: linear head, cross-entropy, the backbone frozen or not.

    logits = W h + b,   loss = mean_i cross_entropy(logits_i, y_i),   h = backbone(view)

Three ways, by two settings: `frozen=true` trains the head alone; `frozen=false` trains everything;
`unfreeze_after_epoch=n` trains the head alone for n epochs and everything afterwards, so that a random head does not
spoil good features (Kumar et al. 2022, arXiv:2202.10054).

Reference: Chen et al. 2020, arXiv:2002.05709, Appendix B.5 (fine-tuning: crop and flip, Nesterov SGD, no decay).
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast import distributed
from ssl_fast.data.view_presets import supervised
from ssl_fast.data.views import Batch, View
from ssl_fast.methods.base import Method
from ssl_fast.models.backbone import Backbone
from ssl_fast.optim.config import OptimizerConfig


@dataclass
class SupervisedConfig:
    """Defaults after SimCLR's fine-tuning; its Nesterov momentum is plain momentum here."""

    name: str = "supervised"
    num_classes: int = 0  # 0: the data set's
    frozen: bool = False
    unfreeze_after_epoch: int = 0  # epochs of training the head alone before everything is trained
    epochs: int = 0  # of the whole training, to place the unfreezing; 0: train.epochs
    label_smoothing: float = 0.0
    view: View = field(default_factory=lambda: supervised()[0])  # view.policy=randaugment, ...: data/policies.py
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.0)
    )


class Supervised(Method):
    """A backbone with a linear head.

    While frozen, the backbone runs in evaluation mode without a graph: neither its weights nor its batch statistics
    change.

    Raises:
        ValueError: no number of classes, or settings of freezing that contradict each other.
    """

    Config = SupervisedConfig
    config: SupervisedConfig
    may_collapse = False

    def __init__(self, config: SupervisedConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        _check(config)
        self.head = nn.Linear(backbone.num_features, config.num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.frozen = config.frozen
        if config.frozen:
            self.backbone.requires_grad_(False)  # otherwise adapters have said what is trained
        # Before it is unfrozen the backbone takes no part in the graph, which DDP has to be told.
        self.find_unused_parameters = config.unfreeze_after_epoch > 0

    @staticmethod
    def views(config: SupervisedConfig) -> tuple[View, ...]:
        return (config.view,)

    def before_step(self, progress: float) -> None:
        """Freezes or unfreezes, as a function of the progress alone: a resumed run does what an unbroken one does."""
        config = self.config
        early = config.unfreeze_after_epoch > 0 and progress < config.unfreeze_after_epoch / config.epochs
        self.frozen = config.frozen or early
        self.backbone.train(not self.frozen)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        if not self.frozen:
            return {"h": self.backbone(batch.views[0])}  # [N, F]
        with torch.no_grad():
            h = self.backbone(batch.views[0])
        return {"h": h.requires_grad_(torch.is_grad_enabled())}  # a leaf: whoever asks for its gradient gets one

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        if batch.labels is None or batch.labels.ndim != 1:
            got = "none" if batch.labels is None else "several"
            raise ValueError(f"data: expected a data set with labels for method=supervised, one a sample, got {got}")
        logits = self.head(embeddings["h"]).float()  # [N, C]
        losses = F.cross_entropy(logits, batch.labels, label_smoothing=self.config.label_smoothing, reduction="none")
        with torch.no_grad():
            hits = (logits.argmax(1) == batch.labels).float()
        return {
            "loss": distributed.global_mean(losses, group=self.group),
            "train_top1": distributed.global_mean(hits, group=self.group),
        }


def _check(config: SupervisedConfig) -> None:
    if config.num_classes < 2:
        raise ValueError(f"method.num_classes: expected at least 2, got {config.num_classes}")
    if config.frozen and config.unfreeze_after_epoch:
        raise ValueError(
            "method.frozen, method.unfreeze_after_epoch: expected one of the two, got frozen=true and "
            f"unfreeze_after_epoch={config.unfreeze_after_epoch}"
        )
    if not 0 <= config.unfreeze_after_epoch <= config.epochs:
        raise ValueError(
            f"method.unfreeze_after_epoch: expected 0 to {config.epochs} (the epochs of the training), "
            f"got {config.unfreeze_after_epoch}"
        )
