"""Times, memory and rates of a device: CUDA events on a GPU, the clock on a CPU (where the same code is tested)."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Step = Callable[[], object]
_L2 = 256 << 20  # bytes written to empty the L2 cache
_AHEAD = 4_000_000  # cycles, 2 ms, that the GPU waits before a measurement: the host's launches are not in it


class Clock:
    """Measures on one device; `small` is for trying the code out."""

    def __init__(self, device: str, small: bool) -> None:
        self.device, self.small, self.cuda = device, small, device == "cuda"
        self._flushed = torch.empty((1 << 16) if small else _L2, dtype=torch.int8, device=device)

    def milliseconds(self, step: Step, cold: bool) -> float:
        """One call, with the L2 cache emptied before, or as another call of the same step left it."""
        if cold:
            self._flushed.zero_()
        else:
            step()
        if not self.cuda:
            begun = time.perf_counter()
            step()
            return (time.perf_counter() - begun) * 1e3
        torch.cuda._sleep(_AHEAD)  # type: ignore[no-untyped-call]
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def interleaved(self, steps: dict[str, Step], cold: bool, seconds: float) -> dict[str, list[float]]:
        """Every step's milliseconds over 5 to 50 rounds in turning order, as many as fit the seconds."""
        times: dict[str, list[float]] = {name: [] for name in steps}
        names, begun = list(steps), time.perf_counter()
        for turn in range(2 if self.small else 50):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                times[name].append(self.milliseconds(steps[name], cold))
            if turn >= 4 and time.perf_counter() - begun > seconds:
                break
        return times

    def captured(self, step: Callable[[], T]) -> Callable[[], T]:
        """The step as a CUDA graph, whose replay returns the tensors of the one call that was recorded.

        Raises:
            RuntimeError: on a CPU; or the step waits for the device, which no graph can hold.
        """
        if not self.cuda:
            raise RuntimeError("no CUDA graph on a CPU")
        torch.cuda.set_sync_debug_mode("error")  # a capture that fails halfway would leave the allocator in it
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = step()

        def replay() -> T:
            graph.replay()
            return found

        return replay

    def extra_mb(self, step: Step) -> float | str:
        """MB that one call adds to the allocated memory at its highest; on a CPU nobody counts."""
        if not self.cuda:
            return ""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)

    def host_us(self, step: Step) -> float:
        """Microseconds that the host is busy with one call, of inputs so small that the device keeps up."""
        times = []
        for _ in range(3 if self.small else 50):
            self.wait()
            begun = time.perf_counter()
            step()
            times.append(time.perf_counter() - begun)
        return sorted(times)[len(times) // 2] * 1e6

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def flop_rate(self, dtype: torch.dtype) -> float:
        """FLOP a second of a large square product of torch's own, in this dtype and as torch is told to multiply."""
        size = 128 if self.small else 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        return 2e3 * size**3 / self._best(lambda: a @ b)

    def byte_rate(self) -> float:
        """Bytes a second of a large copy, read and written."""
        source = torch.zeros((1 << 16) if self.small else (1 << 28), device=self.device)
        target: Tensor = torch.empty_like(source)
        return 2e3 * 4 * source.numel() / self._best(lambda: target.copy_(source))

    def _best(self, step: Step) -> float:
        return min(self.milliseconds(step, False) for _ in range(3 if self.small else 20))
