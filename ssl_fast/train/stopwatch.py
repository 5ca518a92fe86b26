"""Where a step's time goes, without waiting for the device."""

import time

import torch


class Stopwatch:
    """Sums the seconds between laps by name: CUDA events on a GPU (read at `collect`), the clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def lap(self, name: str) -> None:
        """Ends a phase called `name`, which began at the previous lap."""
        self._marks.append((name, self._now()))

    def collect(self) -> dict[str, float]:
        """Seconds by phase since the last `collect`; the phase called "start" opens a step and is not counted."""
        if self._cuda:
            torch.cuda.synchronize()
        totals: dict[str, float] = {}
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            if name != "start":
                totals[name] = totals.get(name, 0.0) + _seconds(before, after)
        self._marks.clear()
        return totals

    def _now(self) -> "float | torch.cuda.Event":
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _seconds(before: "float | torch.cuda.Event", after: "float | torch.cuda.Event") -> float:
    if isinstance(before, float) and isinstance(after, float):
        return after - before
    assert isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event)
    return float(before.elapsed_time(after)) / 1e3
