"""One optimiser step: forward, loss, backward, one verdict on the gradients, update.

Optimisers are called as `optimizer.step(closure)`, so that those which evaluate the loss twice (SAM) need no branch.
A step whose loss or gradients are not finite on any rank changes nothing: all gradients become None, which every
optimiser skips, and the method's `after_step` (teacher, queue) is not called.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_fast import distributed
from ssl_fast.data.views import Batch
from ssl_fast.methods.base import Method
from ssl_fast.optim.passes import frozen_statistics
from ssl_fast.train.precision import LossScale, autocast
from ssl_fast.train.stopwatch import Stopwatch


@dataclass
class StepOutcome:
    """What a step did: detached losses by name, the embedding watched for collapse, and whether it was applied."""

    losses: dict[str, Tensor]
    watched: Tensor  # [N, D]
    grad_norm: Tensor
    finite: bool


class Step:
    """Runs optimiser steps of a method.

    Args:
        method: on its device.
        optimizer: over the method's parameters.
        microbatch: samples embedded at a time; 0 for all of them. The loss always sees the whole batch: rows are
            embedded without a graph, the loss gives their gradients, then they are embedded again with a graph
            (GradCache, Gao et al. 2021, arXiv:2101.06983), which equals the full batch to rounding for networks
            without batch statistics.
        precision: fp32, bf16 or fp16.
        clip_grad_norm: largest global gradient norm; 0 does not clip.
    """

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        *,
        microbatch: int,
        precision: str,
        clip_grad_norm: float,
        device: torch.device,
        stopwatch: Stopwatch,
    ) -> None:
        self.method = method
        self.optimizer = optimizer
        self.microbatch = microbatch
        self.precision = precision
        self.clip_grad_norm = clip_grad_norm
        self.device = device
        self.stopwatch = stopwatch
        self.scale = LossScale(enabled=precision == "fp16")
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.wrapped: nn.Module = method
        if distributed.world_size() > 1 and not microbatch:
            # The ranks start equal (same seed) and running statistics never enter a loss: no buffer is broadcast.
            device_ids = [device.index] if device.type == "cuda" else None
            self.wrapped = nn.parallel.DistributedDataParallel(
                method,
                device_ids=device_ids,
                process_group=method.group,
                broadcast_buffers=False,
                find_unused_parameters=method.find_unused_parameters,
            )

    def __call__(self, batch: Batch, progress: float, key: int) -> StepOutcome:
        """One step on this rank's rows of the global batch.

        Args:
            progress: share of all steps done, in [0, 1].
            key: of all that is random in it; a function of the run's seed and the step, so that a resumed run draws
                the same. Dropout and drop path differ between ranks.
        """
        self.method.before_step(progress)
        batch.extras |= self.method.extras(batch, key)
        seed = key ^ distributed.rank()
        outcomes: list[StepOutcome] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            run = self._microbatched if 0 < self.microbatch < len(batch) else self._whole
            losses, watched = run(batch, progress, seed)
            outcome = self._judge(losses, watched)
            outcomes.append(outcome)
            self.stopwatch.lap("backward")
            return losses["loss"].detach()

        self.optimizer.step(closure)  # type: ignore[arg-type]  # torch types the closure as returning float
        outcome = outcomes[0]
        outcome.finite = all(o.finite for o in outcomes)
        self.scale.update(outcome.finite)
        if outcome.finite:
            self.method.after_step(progress)
        self.stopwatch.lap("optimizer")
        return outcome

    def _whole(self, batch: Batch, progress: float, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        self._seed(seed)
        with autocast(self.precision, self.device):
            embeddings, losses = self.wrapped(batch, progress)
        self.stopwatch.lap("forward")
        self.scale.scale(losses["loss"]).backward()  # type: ignore[no-untyped-call]
        if self.microbatch:
            distributed.average_gradients(self.parameters, self.method.group)
        return losses, next(iter(embeddings.values())).detach()

    def _microbatched(self, batch: Batch, progress: float, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        starts = range(0, len(batch), self.microbatch)
        chunks = [batch.slice(start, min(start + self.microbatch, len(batch))) for start in starts]
        rows, targets = self._rows(chunks, seed)
        leaves = {name: value.requires_grad_() for name, value in rows.items()}
        with autocast(self.precision, self.device):
            losses = self.method.loss({**leaves, **targets}, batch, progress)
        self.scale.scale(losses["loss"]).backward()  # type: ignore[no-untyped-call]
        self.stopwatch.lap("forward")
        for number, (start, chunk) in enumerate(zip(starts, chunks, strict=True)):
            self._seed(seed + number)
            with autocast(self.precision, self.device):
                again = self.method.embed(chunk)
            gradients = [_gradient(leaves[name])[start : start + len(chunk)] for name in again]
            torch.autograd.backward(list(again.values()), gradients)
        distributed.average_gradients(self.parameters, self.method.group)
        return losses, next(iter(rows.values())).detach()

    @torch.no_grad()
    def _rows(self, chunks: list[Batch], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Embeddings and targets of all rows, without a graph; the networks' running statistics stay as they are."""
        rows, targets = [], []
        for number, chunk in enumerate(chunks):
            self._seed(seed + number)
            with autocast(self.precision, self.device):
                with frozen_statistics(self.method):
                    rows.append(self.method.embed(chunk))
                targets.append(self.method.targets(chunk))
        return _join(rows), _join(targets)

    def _seed(self, seed: int) -> None:
        """`torch.manual_seed` without a CUDA device formats the stack three times, for what may come."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _judge(self, losses: dict[str, Tensor], watched: Tensor) -> StepOutcome:
        """Unscales and clips the gradients; drops them all when any rank has one that is not finite."""
        self.scale.unscale_(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        local = bool(torch.isfinite(norm) & torch.isfinite(losses["loss"].detach()))
        finite = distributed.all_agree(local, self.method.group)
        if not finite:
            for p in self.parameters:
                p.grad = None
        elif self.clip_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad_norm, norm)
        return StepOutcome({k: v.detach() for k, v in losses.items()}, watched, norm, finite)


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
