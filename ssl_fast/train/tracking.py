"""What a run tells: metrics.jsonl always, TensorBoard and W&B by one switch each, and a progress bar or plain lines."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from ssl_fast import distributed
from ssl_fast.data import meter
from ssl_fast.train.canonical import to_json
from ssl_fast.train.durable import write_atomic

_WANDB_MODES = ("off", "offline", "online")


class Tracker:
    """Writes the numbers of a stage, one JSON object a line, and mirrors them. Ranks other than 0 write nothing.

    Log what belongs to a step before that step's checkpoint is saved. Then a run that was killed and resumed leaves the
    same lines (but for ``time``) as one that was not: lines beyond the resumed step are dropped and written anew.

    Args:
        folder: the stage's folder.
        tensorboard: write event files to ``<folder>/tensorboard``.
        wandb: ``off``, ``offline`` or ``online``; files go to ``<folder>/wandb``.
        run_name: name that the mirrors show.
        config: config that the mirrors show.
        start: step that training resumes from, 0 for a new run.

    Raises:
        ValueError: wandb is none of the three.
        RuntimeError: a mirror's package is not installed; the message names the extra.
    """

    def __init__(
        self,
        folder: Path | str,
        tensorboard: bool = False,
        wandb: str = "off",
        run_name: str = "",
        config: dict[str, Any] | None = None,
        start: int = 0,
    ) -> None:
        if wandb not in _WANDB_MODES:
            raise ValueError(f"wandb must be one of {', '.join(_WANDB_MODES)}, got {wandb!r}")
        self.path = Path(folder) / "metrics.jsonl"
        self._file: TextIO | None = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        if distributed.rank() != 0:
            return
        if tensorboard:
            self._tensorboard = _open_tensorboard(self.path.parent, start)
        if wandb != "off":
            self._wandb = _open_wandb(self.path.parent, wandb, run_name, config or {})
        _drop_beyond(self.path, start)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  closed by close()

    def log(self, step: int, **values: Any) -> None:
        """Write one line: the step, the time (Unix seconds) and the values; flushed at once.

        Args:
            step: number of optimiser steps done.
            values: numbers, 0-dim tensors, strings, lists; a number that is not finite is written as null.
        """
        if self._file is None:
            return
        line = to_json({"step": step, "time": round(time.time(), 3), **values})
        self._file.write(line + "\n")
        self._file.flush()
        numbers = {
            key: value
            for key, value in json.loads(line).items()
            if isinstance(value, (int, float)) and key not in ("step", "time")
        }
        if self._tensorboard is not None:
            for key, value in numbers.items():
                self._tensorboard.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log({**numbers, "step": step})

    def close(self) -> None:
        """Close the file and the mirrors."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _drop_beyond(path: Path, start: int) -> None:
    """Keep the lines of steps up to ``start``; the last line of a killed process may be cut."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= start]
    if kept != lines:
        write_atomic(path, b"".join(kept))


def _step_of(line: bytes) -> float:
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _open_tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RuntimeError(
            "tensorboard=true needs the package tensorboard: pip install ssl_fast[recipes], or set it to false"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)


def _open_wandb(folder: Path, mode: Any, run_name: str, config: dict[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise RuntimeError(
            f"wandb={mode} needs the package wandb: pip install ssl_fast[wandb], or set it to off"
        ) from error
    run = wandb.init(
        project="ssl_fast", name=run_name or None, dir=str(folder), mode=mode, config=config, settings={"silent": True}
    )
    run.define_metric("*", step_metric="step")  # our step: a resumed run logs some steps a second time
    return run


class Progress:
    """A bar on a terminal, plain lines elsewhere: values, images/s, where the time went, time left. Rank 0 only.

    Args:
        total: number of optimiser steps of the run.
        start: step that training resumes from.
        batch_size: images (not views) of a step, over all ranks.
        interval: seconds between plain lines.
        stream: where to write; stderr by default, because the last line on stdout is the result.
    """

    def __init__(
        self, total: int, start: int, batch_size: int, interval: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self.total = total
        self.start = start
        self.batch_size = batch_size
        self.interval = interval
        self._stream = sys.stderr if stream is None else stream
        self._silent = distributed.rank() != 0
        self._began = self._shown = time.perf_counter()
        self._shown_step = start
        self._times: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self._remedies: list[str] = []
        self._bar = _bar(total, start, self._stream) if not self._silent and _is_terminal(self._stream) else None

    def update(
        self,
        step: int,
        values: dict[str, Any],
        times: dict[str, float],
        spent: dict[str, float] | None = None,
        remedies: list[str] | None = None,
    ) -> None:
        """Tell how far training is; call it as often as convenient.

        Args:
            step: number of optimiser steps done.
            values: what to show, such as ``loss``.
            times: seconds of each part (``data``, ``forward``, ``backward``, ``optimizer``) since the last call.
            spent: seconds that the loader waited and worked since the last call (``Loader.collect``).
            remedies: settings to name when training turns out to wait for data.
        """
        if self._silent:
            return
        for sums, new in ((self._times, times), (self._spent, spent or {})):
            for part, seconds in new.items():
                sums[part] = sums.get(part, 0.0) + seconds
        self._remedies = remedies or []
        now = time.perf_counter()
        if self._bar is not None:
            self._bar.set_postfix_str(self._summary(step, now, values), refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self._shown >= self.interval or step == self.total:
            left = (now - self._began) / max(step - self.start, 1) * (self.total - step)
            self.write(f"step {step}/{self.total}  {self._summary(step, now, values)}  {_clock(left)} left")
        else:
            return
        self._shown, self._shown_step = now, step
        self._times.clear()
        self._spent.clear()

    def write(self, text: str) -> None:
        """Write a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif not self._silent:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _summary(self, step: int, now: float, values: dict[str, Any]) -> str:
        rate = (step - self._shown_step) * self.batch_size / max(now - self._shown, 1e-9)
        whole = sum(self._times.values()) or 1.0
        shown = [f"{name} {_short(value)}" for name, value in values.items()]
        shown += [f"{rate:,.0f} images/s", *(f"{part} {seconds / whole:.0%}" for part, seconds in self._times.items())]
        if self._spent:
            shown += [meter.describe(self._spent), meter.verdict(self._times.get("data", 0.0) / whole, self._remedies)]
        return "  ".join(filter(None, shown))


def _is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be drawn; terminals of containers may have no width."""
    return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0


def _bar(total: int, start: int, stream: TextIO) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None  # plain lines tell the same
    layout = "{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
    return tqdm(total=total, initial=start, file=stream, dynamic_ncols=True, bar_format=layout)


def _short(value: Any) -> str:
    return f"{float(value):.4g}" if hasattr(value, "__float__") else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
