"""The training loop: epochs of steps over a loader, with checkpoints, a monitor, a tracker and early warnings.

Plain PyTorch: one process, or several under torchrun with DDP. Everything random is a function of (seed, epoch, step,
sample), so a run resumed from a checkpoint ends with the same bits as one that was never interrupted (same hardware and
number of threads; on a GPU with `deterministic`, as far as torch has such kernels).
"""

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_fast import distributed
from ssl_fast.data import meter
from ssl_fast.data.loader import Loader
from ssl_fast.data.views import Batch
from ssl_fast.methods.base import Method
from ssl_fast.models.norm import synchronize_batch_norm
from ssl_fast.models.video import channels_last_
from ssl_fast.optim.config import build_optimizer, scheduled_
from ssl_fast.optim.schedule import scaled_lr, warmup_cosine
from ssl_fast.train.checkpoint import Checkpoints
from ssl_fast.train.determinism import choose_kernels
from ssl_fast.train.host_memory import keep_freed_memory
from ssl_fast.train.precision import choose_precision
from ssl_fast.train.run import Signals
from ssl_fast.train.step import Step, StepOutcome
from ssl_fast.train.stopwatch import Stopwatch
from ssl_fast.train.tracking import Progress, Tracker

log = logging.getLogger(__name__)
Monitor = Callable[[nn.Module], dict[str, float]]

MAX_SKIPPED_IN_A_ROW = 3
COLLAPSED_STD = 0.1  # of a unit embedding's coordinates times sqrt(D): 1 when spread evenly, 0 when all rows agree


@dataclass
class TrainConfig:
    """How to train; what to optimise with is the method's (`method.optimizer`)."""

    epochs: int = 100
    batch_size: int = 256  # global: the sum over ranks
    microbatch: int = 0  # samples embedded at a time on a rank; 0: all of them
    precision: str = "auto"  # auto | fp32 | bf16 | fp16
    clip_grad_norm: float = 0.0  # 0: no clipping
    channels_last: bool = True
    stacked_views: bool = True
    sync_batchnorm: bool = False
    compile: bool = False
    deterministic: bool = False  # on a GPU: the same bits in every run, slower
    device: str = "auto"
    threads: int = 0  # of this process on a CPU; 0: torch's choice
    seed: int = 0
    log_every: int = 10  # steps
    monitor_every: int = 1  # epochs; 0: never
    checkpoint_every: int = 1  # epochs
    checkpoint_steps: int = 0  # steps; 0: only at the end of epochs
    tensorboard: bool = False
    wandb: str = "off"  # off | offline | online


class Interrupted(BaseException):
    """SIGTERM or SIGINT arrived; the checkpoint is written. `exit_code` is what the process should end with.

    No Exception, as KeyboardInterrupt is none: code that passes over a broken file must not pass over it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number


class Trainer:
    """Trains a method on a loader's batches.

    Args:
        method: built with the same seed on every rank.
        loader: this rank's slices of the global batches.
        checkpoints: where to resume from and save to; None trains without.
        monitor: called with the backbone every `monitor_every` epochs; its numbers are logged.

    Raises:
        ValueError: for settings that cannot work, in one sentence.
    """

    def __init__(
        self,
        method: Method,
        loader: Loader,
        config: TrainConfig,
        *,
        checkpoints: Checkpoints | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        _check(config)
        self.config = config
        self.device = distributed.initialize(config.device)
        self.loader = loader
        self.checkpoints = checkpoints
        self.tracker: Tracker | None = None
        self.monitor = monitor
        self.method = self._prepare(method)
        self.optimizer_config = method.config.optimizer
        self.base_lr = scaled_lr(self.optimizer_config.lr, config.batch_size, self.optimizer_config.lr_scaling)
        self.optimizer = build_optimizer(
            self.optimizer_config,
            self.method.named_parameters(),
            self.base_lr,
            freeze=[self.method],
            options=self.method.group_options,
        )
        self.stopwatch = Stopwatch(self.device)
        self.step_runner = Step(
            self.method,
            self.optimizer,
            microbatch=config.microbatch,
            precision=choose_precision(config.precision, self.device),
            clip_grad_norm=config.clip_grad_norm,
            device=self.device,
            stopwatch=self.stopwatch,
        )
        self.total_steps = config.epochs * len(loader)
        self.step = 0
        self.lr = 0.0  # the schedule's, at the last step; a group's may be another
        self.seconds = 0.0  # in steps: without monitor and checkpoints
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.logged: dict[str, float] = {}

    def fit(self, tracker: Tracker | None = None) -> dict[str, Any]:
        """Trains from where it stands (see `resume`) to the end and returns the run's figures.

        Args:
            tracker: gets the metrics; None drops them.

        Raises:
            Interrupted: after SIGTERM or SIGINT, once the checkpoint is written.
            RuntimeError: three steps in a row had a loss or gradient that was not finite.
        """
        self.tracker = tracker
        progress = Progress(self.total_steps, self.step, self.config.batch_size)
        with Signals() as signals:
            for epoch in range(self.step // len(self.loader), self.config.epochs):
                self._epoch(epoch, progress, signals)
        progress.close()
        return {
            "steps": self.step,
            "skipped_steps": self.skipped,
            "train_seconds": self.seconds,
            "images_per_second": self.step * self.config.batch_size / max(self.seconds, 1e-9),
            **self.logged,
        }

    def resume(self) -> int:
        """Goes to the newest good checkpoint, where there is one; returns the step that training continues from."""
        # To the CPU: what belongs on the device is copied there, and Adam's counters of steps, which it reads, are not.
        found = self.checkpoints.load() if self.checkpoints else None
        if found is None:
            return self.step
        state, path = found
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_runner.scale.load_state_dict(state["scale"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.logged = dict(state["logged"])
        if distributed.rank() == 0:
            log.info("resumed from %s at step %d", path.name, self.step)
        return self.step

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "logged": self.logged,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scale": self.step_runner.scale.state_dict(),
        }

    def _prepare(self, method: Method) -> Method:
        config = self.config
        if config.threads:
            torch.set_num_threads(config.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        choose_kernels(self.device, config.deterministic)
        method.group = distributed.world()
        method.stacked_views = config.stacked_views
        if config.sync_batchnorm:
            if self.device.type != "cuda":
                raise ValueError("train.sync_batchnorm: expected a GPU (torch has no SyncBatchNorm on the CPU)")
            if config.microbatch and config.batch_size % distributed.world_size():
                # each pass is a message between the ranks, and those with a longer part would make more of them
                raise ValueError(
                    f"train.sync_batchnorm, train.microbatch: expected train.batch_size to be a multiple of the "
                    f"{distributed.world_size()} ranks, got {config.batch_size}"
                )
            method = synchronize_batch_norm(method)
        method = method.to(self.device).train()
        if config.channels_last:
            channels_last_(method)
        if config.compile:
            method.compile_networks()
        self._say_whose_statistics(method)
        return method

    def _say_whose_statistics(self, method: Method) -> None:
        split = self.config.microbatch or distributed.world_size() > 1
        norms = [m for m in method.modules() if isinstance(m, _BatchNorm)]
        if not self.config.microbatch:
            norms = [m for m in norms if not isinstance(m, nn.SyncBatchNorm)]
        if not split or not norms or distributed.rank():
            return
        rows = self.config.microbatch or -(-self.config.batch_size // distributed.world_size())
        log.warning(
            "batch normalisation uses the statistics of each %s of %d images, not of the whole batch of %d",
            "microbatch" if self.config.microbatch else "rank's part",
            rows,
            self.config.batch_size,
        )

    def _epoch(self, epoch: int, progress: Progress, signals: Signals) -> None:
        start = self.step - epoch * len(self.loader)
        begun = time.perf_counter()
        self.stopwatch.lap("start")
        for batch in self.loader.epoch(epoch, start):
            self.stopwatch.lap("data")
            outcome = self._one_step(batch)
            self._watch(outcome, progress, epoch)
            # An epoch's last step is saved after its monitor: whoever resumes there has its figures already.
            if self.step % len(self.loader):
                if self._due():
                    self.seconds += time.perf_counter() - begun
                    self._save()
                    begun = time.perf_counter()
                if self._told_to_stop(signals):
                    self.seconds += time.perf_counter() - begun
                    self._interrupt(signals)
            self.stopwatch.lap("start")
        self.seconds += time.perf_counter() - begun
        self._after_epoch(epoch)
        if self._told_to_stop(signals):
            self._interrupt(signals)

    def _told_to_stop(self, signals: Signals) -> bool:
        return not distributed.all_agree(signals.received is None, self.method.group)

    def _interrupt(self, signals: Signals) -> None:
        self._save()
        raise Interrupted(signals.received or signal.SIGTERM)

    def _one_step(self, batch: Batch) -> StepOutcome:
        self.lr = self._schedule()
        batch = batch.to(self.device, non_blocking=True)
        seed = self.config.seed ^ self.config.seed >> 24  # all its bits in the 24 that there is room for
        key = (seed << 40 ^ self.step << 8) & (1 << 64) - 1
        outcome = self.step_runner(batch, self.step / self.total_steps, key)
        self.step += 1
        return outcome

    def _schedule(self) -> float:
        """Sets the step's rate, which it returns, and its weight decay."""
        config, steps = self.optimizer_config, len(self.loader)
        lr = warmup_cosine(
            self.step,
            self.total_steps,
            warmup=min(round(config.warmup_epochs * steps), self.total_steps),
            base=self.base_lr,
            final=self.base_lr * config.final_lr,
        )
        last = config.weight_decay if config.final_weight_decay is None else config.final_weight_decay
        decay = warmup_cosine(self.step, self.total_steps, 0, config.weight_decay, last)
        scheduled_(self.optimizer, lr, self.base_lr, decay)
        return lr

    def _due(self) -> bool:
        every = self.config.checkpoint_steps
        return every > 0 and self.step % every == 0

    def _watch(self, outcome: StepOutcome, progress: Progress, epoch: int) -> None:
        self._count_skipped(outcome)
        if self.step % self.config.log_every and self.step != self.total_steps:
            return
        values = {name: float(value) for name, value in outcome.losses.items()}
        values["embedding_std"] = embedding_std(outcome.watched)
        if self.method.may_collapse and values["embedding_std"] < COLLAPSED_STD and distributed.rank() == 0:
            log.warning(
                "step %d: the embeddings are collapsing (std %.3f of 1): %s",
                self.step,
                values["embedding_std"],
                self.method.collapse_cause,
            )
        times, spent = self.stopwatch.collect(), self.loader.collect()
        total = sum(times.values()) or 1.0
        remedies = meter.remedies(self.loader, spent)
        self.logged = dict(values)
        values |= {f"time_{name}": seconds / total for name, seconds in times.items()}
        values |= {f"time_{name}_seconds": seconds for name, seconds in spent.items()}
        values["lr"] = self.lr
        values["grad_norm"] = float(outcome.grad_norm)
        said = meter.verdict(values.get("time_data", 0.0), remedies)
        if self.tracker:
            self.tracker.log(self.step, epoch=epoch, **values, **({"time_verdict": said} if said else {}))
        progress.update(self.step, {"loss": values["loss"], "lr": values["lr"]}, times, spent, remedies)

    def _count_skipped(self, outcome: StepOutcome) -> None:
        if outcome.finite:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        if self.step_runner.scale.can_shrink():
            return  # fp16 is looking for its scale
        self.skipped_in_a_row += 1
        log.warning("step %d skipped: its loss or a gradient was not finite", self.step)
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise RuntimeError(
                f"stopped at step {self.step}: {MAX_SKIPPED_IN_A_ROW} steps in a row had a loss or gradient that was "
                "not finite; lower the learning rate, or use train.precision=fp32"
            )

    def _after_epoch(self, epoch: int) -> None:
        last = epoch + 1 == self.config.epochs
        every = self.config.monitor_every
        if self.monitor and every and ((epoch + 1) % every == 0 or last) and distributed.rank() == 0:
            figures = self.monitor(self.method.backbone)
            if self.tracker:
                self.tracker.log(self.step, epoch=epoch, **figures)
            log.info("epoch %d: %s", epoch + 1, ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
        if (epoch + 1) % self.config.checkpoint_every == 0 or last or self._due():
            self._save()

    def _save(self) -> None:
        if self.checkpoints and distributed.rank() == 0:
            self.checkpoints.save(self.step, self.state())
        distributed.barrier(self.method.group)


def embedding_std(z: Tensor) -> float:  # z: [N, D]
    """Mean standard deviation of the coordinates of unit rows, times sqrt(D): about 1 spread out, 0 collapsed.

    Reference: Chen and He 2020, arXiv:2011.10566, section 4.1.
    """
    unit = nn.functional.normalize(z.detach().float().flatten(1), dim=1)
    return float(unit.std(dim=0).mean() * unit.shape[1] ** 0.5)


def _check(config: TrainConfig) -> None:
    smallest = 2 * distributed.world_size()
    if config.batch_size < smallest:
        raise ValueError(
            f"train.batch_size: expected at least {smallest} (two images on each rank: one alone has nothing to be "
            f"compared with), got {config.batch_size}"
        )
    for name in ("epochs", "log_every", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"train.{name}: expected at least 1, got {getattr(config, name)}")
    if not 0 <= config.seed < 1 << 63:
        raise ValueError(f"train.seed: expected a number from 0 to 2**63 - 1, got {config.seed}")
    if config.microbatch < 0 or config.microbatch == 1:
        raise ValueError(f"train.microbatch: expected 0 (off) or at least 2, got {config.microbatch}")
