"""The contract between a method and the training loop.

A method is one file with one `Method`. Its work is split at the embeddings, because that is where exact gradient
accumulation cuts a step in two (GradCache, Gao et al. 2021, arXiv:2101.06983): rows can be embedded a microbatch at a
time, while a loss that couples samples must see all of them at once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_fast.data.views import Batch, View
from ssl_fast.models.backbone import Backbone


class Method(nn.Module):
    """Base of all methods: a backbone, what is put on top of it, and the loss.

    Attributes:
        config: the method's own `Config` (a dataclass nested in the class; defaults are the paper's).
        backbone: what is evaluated, saved and exported: images [N, C, H, W] -> features [N, F].
        group: the process group whose ranks share the global batch; None for one process.
        find_unused_parameters: some steps leave parameters out of the graph, which DDP has to be told.
        may_collapse: rows that all agree are an alarm (not so for features of a classifier).
        collapse_cause: what to look at first when they do, for the warning.
        stacked_views: run views of equal size as one batch through a network (faster; batch statistics are then
            those of all views together).
    """

    Config: type
    stacked_views: bool = True
    find_unused_parameters: bool = False
    may_collapse: bool = True
    collapse_cause: str = "lower the learning rate or check the views"
    group: Any = None

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone

    @staticmethod
    def views(config: Any) -> tuple[View, ...]:
        """The views that the loader must make of every image, in the order of `Batch.views`."""
        raise NotImplementedError

    @staticmethod
    def tokenizer(config: Any) -> Callable[[Sequence[str]], Any] | None:
        """What makes the rows `batch.extras["tokens"]` [N, L] of captions; None for a method that reads none."""
        return None

    def extras(self, batch: Batch, key: int) -> dict[str, Tensor]:
        """Random per-sample rows that a step needs (masks), each [N, ...]; they join `batch.extras`.

        Called once for each step, on the device and before the batch is cut into microbatches. They should be a
        function of `key` and `batch.index`, so that neither ranks nor microbatches change them.

        Args:
            key: a function of the run's seed and the step, the same on all ranks.
        """
        return {}

    def group_options(self, name: str, parameter: nn.Parameter) -> dict[str, Any]:
        """How a parameter is optimised otherwise than the rest, by its name.

        Keys: "lr_scale" multiplies the learning rate; "fixed_lr" (bool) keeps it at its base, without warm-up and
        cosine; "decay" (bool) overrules which parameters decay (those of two and more dimensions).
        """
        return {}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample rows that need a gradient, each [N, ...]; may be called again on the same rows.

        The first entry is the one watched for collapse.
        """
        raise NotImplementedError

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample rows that never need a gradient (a teacher's), each [N, ...]; called once for each row."""
        return {}

    def loss(self, embeddings: dict[str, Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        """The loss over all rows of this rank, global over `group`, under the key "loss"; other keys are logged."""
        raise NotImplementedError

    def compile_networks(self) -> None:
        """Compiles in place what images run through, a teacher's too (`train.compile`); weights keep their names."""
        for module in self.modules():
            if isinstance(module, Backbone):
                module.compile()

    def before_step(self, progress: float) -> None:
        """Called once before an optimiser step; `progress` in [0, 1] is the share of all steps done."""

    def after_step(self, progress: float) -> None:
        """Called once after an optimiser step that was not skipped: teacher updates, queue writes, centres."""

    def save(self, folder: Path) -> list[str]:
        """Writes what later stages need beside the backbone; the names of the files."""
        return []

    def forward(self, batch: Batch, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One whole step through the wrapper's hooks (DDP, FSDP): the embeddings and the losses."""
        embeddings = {**self.embed(batch), **self.targets(batch)}
        return embeddings, self.loss(embeddings, batch, progress)

    def through(self, module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Applies a module to several views; those of one shape go as one batch where `stacked_views` allows it."""
        alike: dict[Any, list[int]] = {}
        for number, x in enumerate(inputs):
            alike.setdefault(x.shape if self.stacked_views else number, []).append(number)
        outputs: dict[int, Tensor] = {}
        for numbers in alike.values():
            views = [inputs[number] for number in numbers]
            stacked: Tensor = module(torch.cat(views) if len(views) > 1 else views[0])
            outputs |= zip(numbers, stacked.chunk(len(views)), strict=True)
        return tuple(outputs[number] for number in range(len(inputs)))
