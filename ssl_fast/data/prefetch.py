"""Batches brought to the device ahead of their use: batch k + 1 is on its way while step k runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from ssl_fast.data.views import Batch


class Copies(Protocol):
    """How batches get to a device."""

    def begin(self, batch: Batch) -> Any:
        """Starts a copy and does not wait for it."""

    def finish(self, pending: Any) -> Batch:
        """The batch that `begin` started, safe to be used by what the caller does next."""

    def seconds(self) -> float:
        """Seconds that copies took since the last call."""


class CudaCopies:
    """Copies on a stream of their own; pinned batches are copied while the current stream computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._timed: list[tuple[Any, Any]] = []

    def begin(self, batch: Batch) -> Any:
        """Starts the copy of `batch`."""
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            begun.record()
            moved = batch.to(self._device, non_blocking=True)
            ended.record()
        self._timed.append((begun, ended))
        return moved, ended

    def finish(self, pending: Any) -> Batch:
        """Makes the current stream, not this process, wait for the copy."""
        moved, ended = pending
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(ended)
        for tensor in moved.tensors():
            if tensor.is_cuda:
                tensor.record_stream(stream)  # else its memory could be given away while that stream reads it
        return moved  # type: ignore[no-any-return]

    def seconds(self) -> float:
        """Of the copies that have ended."""
        ended = [pair for pair in self._timed if pair[1].query()]
        self._timed = [pair for pair in self._timed if pair not in ended]
        return float(sum(begun.elapsed_time(end) for begun, end in ended)) / 1e3


def ahead_of_use(batches: Iterator[Batch], copies: Copies) -> Iterator[Batch]:
    """The batches on the device; the next one's copy is begun before one is handed out."""
    pending = None
    for batch in batches:
        begun = copies.begin(batch)
        if pending is not None:
            yield copies.finish(pending)
        pending = begun
    if pending is not None:
        yield copies.finish(pending)
