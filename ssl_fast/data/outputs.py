"""Where views are written: tensors of the caller's, or memory of views that nobody holds any more.

Fresh memory by the megabyte comes from the kernel, which clears it page by page while the threads that want it wait;
pages that were written before cost nothing.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.views import View


class Spares:
    """Makes tensors over memory of its own, which comes back when the last reference to it has gone.

    A tensor's storage holds an array over its block, and whatever shares memory with the tensor (slices, `detach()`,
    `numpy()`, DLPack) holds the storage. Only when the array dies is the block a spare one: what anyone can still read
    is never written. Nothing is locked: any thread may let go of a tensor, and a process may be forked at any time.

    Args:
        most: blocks that are kept in reserve; when more come back, those unused for longest go to the system.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._blocks: deque[NDArray[np.uint8]] = deque(maxlen=most)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
        """Like torch.empty on the CPU."""
        like = torch.empty(shape, dtype=dtype, memory_format=memory_format, device="meta")
        block = self._block(like.nbytes)
        lent = block[:]
        weakref.finalize(lent, self._blocks.append, block).atexit = False
        return torch.empty(0, dtype=dtype).set_(torch.from_numpy(lent).untyped_storage(), 0, shape, like.stride())

    def _block(self, nbytes: int) -> NDArray[np.uint8]:
        """The spare block of that size that came back last, or a new one."""
        try:
            for _ in range(len(self._blocks)):
                block = self._blocks.pop()
                if block.nbytes == nbytes:
                    return block
                self._blocks.appendleft(block)
        except IndexError:  # other threads took them
            pass
        return torch.empty(nbytes, dtype=torch.uint8).numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        return Spares, (self._most,)  # memory stays in its process


def check_out(
    out: Sequence[Tensor],  # V
    views: Sequence[View],  # V
    num: int,
    channels: int,
    dtype: torch.dtype,
    device: torch.device,
    memory_format: torch.memory_format,
) -> tuple[Tensor, ...]:
    """`out` as a tuple.

    Raises:
        ValueError: it is not what an engine would return.
    """
    if len(out) != len(views):
        raise ValueError(f"out: expected {len(views)} tensors for as many views, got {len(out)}")
    for tensor, view in zip(out, views, strict=True):
        shape = [num, channels, view.size, view.size]
        fits = list(tensor.shape) == shape and tensor.dtype == dtype and tensor.device == device
        if not fits or not tensor.is_contiguous(memory_format=memory_format):
            layout = str(memory_format).removeprefix("torch.")
            got = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device} with strides {list(tensor.stride())}"
            raise ValueError(f"out: expected {dtype} {shape} on {device}, {layout} in memory, got {got}")
    return tuple(out)
