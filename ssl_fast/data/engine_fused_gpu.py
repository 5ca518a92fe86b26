"""The fused engine on a GPU: all views of a batch in three launches of csrc/cuda/augment.cu.

It applies the same table with the same arithmetic as the engine on a CPU (csrc/core). Nothing waits for the GPU: the
table, addresses and extents go there by one copy, and the views are ready for whatever follows on the current stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_fast.data.engine_fused import check_images, check_table, extents_of, settings
from ssl_fast.data.engine_torchvision import check_channels
from ssl_fast.data.outputs import check_out
from ssl_fast.data.views import View
from ssl_fast.ops.cpp import DTYPES, why_not_built
from ssl_fast.ops.cuda.multi_tensor import no_gpu_for_it, place

GpuImages = Tensor | Sequence[Tensor]  # uint8 [N, H, W, C], or N of [H, W, C], on one GPU


def unavailable() -> str | None:
    """Why the fused engine cannot run on a GPU; None when it can."""
    return why_not_built("_cuda") or no_gpu_for_it()


@cache
def _module() -> ModuleType:
    return import_module("ssl_fast._cuda")


class FusedGpuEngine:
    """Makes views of uint8 images that are on a GPU; two runs give the same bits.

    Args:
        views: the views to make, in order; at most 64.
        channels: C of the images.
        device: where the images are.
        dtype: of the views: float32, float16 or bfloat16.
        memory_format: torch.channels_last, or torch.contiguous_format for NCHW in memory.

    Raises:
        ValueError: a view's normalisation, colour operations or blur do not fit, or another dtype.
        RuntimeError: the CUDA module was not built.
    """

    def __init__(
        self,
        views: Sequence[View],
        channels: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        self.views, self.channels, self.dtype, self.memory_format = tuple(views), channels, dtype, memory_format
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
        if reason := unavailable():
            raise RuntimeError(f"data.engine: fused cannot be used on a GPU: {reason}")
        for view in self.views:
            check_channels(view, channels)
        *self._settings, mean, std = settings(self.views, channels)
        means, stds = (torch.tensor(numbers, dtype=torch.float64).view(-1, channels) for numbers in (mean, std))
        self._normalisation = _moved(torch.stack([1 / stds, -means / stds], dim=1).float(), device)  # [V, 2, C]
        self.device = self._normalisation.device

    def __call__(
        self,
        images: GpuImages,
        table: Tensor,  # [N, V, P], from views.draw, on the CPU
        index: NDArray[np.int64] | None = None,  # [N] which of the images; all, when None
        out: Sequence[Tensor] | None = None,  # V tensors like those returned, to be written and returned
    ) -> tuple[Tensor, ...]:  # V tensors [N, C, S, S], normalised
        """Applies the table.

        Raises:
            ValueError: images that are not uint8 [H, W, C] on the engine's device, or a table or `out` that does not
                fit them.
        """
        check_images(images, self.channels)
        for image in [images] if isinstance(images, Tensor) else images:
            if image.device != self.device:
                raise ValueError(f"images: expected all on {self.device}, got one on {image.device}")
        images = images.contiguous() if isinstance(images, Tensor) else [image.contiguous() for image in images]
        addresses, extents = _located(images, np.arange(len(images)) if index is None else index)
        table = table.to("cpu", torch.float32).contiguous()
        check_table(table, extents, len(self.views))
        num = len(extents)
        outs = self._outs(num) if out is None else self._checked(out, num)
        if num and outs:
            self._launch(addresses, extents, table, outs)
        return outs

    def _outs(self, num: int) -> tuple[Tensor, ...]:
        shapes = [(num, self.channels, view.size, view.size) for view in self.views]
        return tuple(
            torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=self.memory_format)
            for shape in shapes
        )

    def _checked(self, out: Sequence[Tensor], num: int) -> tuple[Tensor, ...]:
        return check_out(out, self.views, num, self.channels, self.dtype, self.device, self.memory_format)

    def _launch(
        self,
        addresses: NDArray[np.int64],  # [N]
        extents: NDArray[np.int64],  # [N, 2]
        table: Tensor,  # [N, V, P] float32
        outs: tuple[Tensor, ...],
    ) -> None:
        sizes, bicubic, _, radii, _ = self._settings
        num = len(addresses)
        sent, places = _sent([torch.from_numpy(addresses), torch.from_numpy(extents), table], self.device)
        num_bytes = _module().augment_workspace(table.data_ptr(), sizes, bicubic, radii, num, self.channels)
        workspace = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        _module().augment(
            *places,
            table.data_ptr(),
            self._normalisation.data_ptr(),
            [out.data_ptr() for out in outs],
            *self._settings,
            num,
            self.channels,
            DTYPES[self.dtype],
            self.memory_format == torch.channels_last,
            workspace.data_ptr(),
            *place(sent),
        )


def _located(
    images: GpuImages,  # contiguous
    index: NDArray[np.int64],  # [N]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # the images' addresses [N], their H, W [N, 2]
    if isinstance(images, Tensor):
        _, height, width, channels = images.shape
        addresses = images.data_ptr() + index * (height * width * channels)
        return addresses, np.full((len(index), 2), (height, width), dtype=np.int64)
    chosen = [images[int(i)] for i in index]
    addresses = np.array([image.data_ptr() for image in chosen], dtype=np.int64)
    return addresses, extents_of(chosen)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on `device`, from pinned memory, so that it need not be waited for."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _sent(parts: list[Tensor], device: torch.device) -> tuple[Tensor, list[int]]:
    """What holds all parts on `device` after one copy, and the addresses that they have there.

    Each part is of whole 8 bytes but the last.
    """
    sent = _moved(torch.cat([part.reshape(-1).view(torch.uint8) for part in parts]), device)
    ends = np.cumsum([part.nbytes for part in parts]).tolist()
    return sent, [sent.data_ptr() + begin for begin in [0, *ends[:-1]]]
