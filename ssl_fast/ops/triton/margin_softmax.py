"""Margin softmax on a GPU: products by cuBLAS, what happens between them by Triton, a panel of classes at a time.

Letters: M rows, C classes of S centres each, D embedding.

    forward     per panel: products, maxima and sums of exponentials of its rows
    gradients   per panel: products again, weights, two products, the norms of the centres; at the end those of x

Work: 8 M S C D FLOP, 6 where all classes are one panel, whose products are kept. A panel is 32 MiB, which an L2 cache
of 50 MB holds between its kernels; memory O(M D + S C D). Rows that are bf16 are multiplied as they are, into fp32;
others in fp32 as torch is told to. The steps follow a fixed order without atomics, nothing is read back by the host.

Reference: Deng et al. 2019, "ArcFace", arXiv:1801.07698, Eq. 3-4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_fast.ops.class_panels import NEVER, Negatives, panels, row_weights

from . import tiles
from .rows import EPS, row_block, row_options
from .towers import Tower, multiply, weights_like

_TILES = 4  # a strip: tiles that a program walks
_BLOCK_R, _BLOCK_C = 16, 128
# Eight numbers a thread: with 16 and 32 the kernels took 200 registers and more, and spilled.
_OPTIONS: dict[str, Any] = {"BLOCK_R": _BLOCK_R, "BLOCK_C": _BLOCK_C, **tiles.ROW_OPTIONS, "num_warps": 8}


def unavailable(*tensors: Tensor) -> str | None:
    """Why the kernels cannot take (x, weight); None if they can."""
    return tiles.unavailable(*tensors, products=False)


def forward(
    x: Tensor,  # [M, D]
    weight: Tensor,  # [C, S, D]
    target: Tensor,  # [M] int64; a number outside [0, C) is no target
    negatives: Negatives,
    normalize: bool,
    phi: Tensor,  # [M] target logits over scale
    slope: Tensor,  # [M] their derivatives
    row_weight: Tensor | None,  # [M]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Log-normaliser of the negatives [M]; with row_weight also dx, dweight, mean [M] of the weighted sum of losses."""
    with torch.autocast(x.device.type, enabled=False), tiles.on_device(x):
        problem = _Problem(x, weight, target, negatives, normalize)
        lse = problem.log_sums(keep=row_weight is not None)
        if row_weight is None:
            return lse, None, None, None
        return lse, *problem.gradients(lse, *row_weights(lse, phi, slope, negatives.scale, row_weight))


def backward(
    x: Tensor,  # [M, D]
    weight: Tensor,  # [C, S, D]
    target: Tensor,  # [M]
    negatives: Negatives,
    normalize: bool,
    lse: Tensor,  # [M]
    coef: Tensor,  # [M]
    pull: Tensor,  # [M]
) -> tuple[Tensor, Tensor, Tensor]:
    """dx [M, D], dweight [C, S, D], and per row coef sum_j p_j f_j [M], for normalisers that are known."""
    with torch.autocast(x.device.type, enabled=False), tiles.on_device(x):
        return _Problem(x, weight, target, negatives, normalize).gradients(lse, coef, pull)


class _Problem:
    """Rows against classes, as the kernels take them."""

    def __init__(self, x: Tensor, weight: Tensor, target: Tensor, negatives: Negatives, normalize: bool) -> None:
        dtype = torch.promote_types(x.dtype, weight.dtype)
        self.x, self.weight = (Tower(rows.to(dtype), normalize) for rows in (x, weight.flatten(0, 1)))
        self.shape, self.target = weight.shape, target.contiguous()
        self.threshold = None if negatives.threshold is None else negatives.threshold.float().contiguous()
        self.scale, self.hardness = (
            tiles.device_scalar(number, x.device) for number in (negatives.scale, negatives.hardness)
        )
        C, S, _ = weight.shape
        self.panels = list(panels(len(x), C, S, itemsize=4)) if len(x) else []
        self.strips = [-(-(end - begin) // (_TILES * _BLOCK_C)) for begin, end in self.panels]
        self.grids = [(-(-len(x) // _BLOCK_R), strips) for strips in self.strips]
        self.kept: Tensor | None = None

    def _per_strip(self, numbers: int) -> Tensor:
        """Room for what the kernels leave of each strip of all panels and each row, [numbers, strips, M]."""
        return torch.empty(numbers, sum(self.strips), len(self.target), device=self.target.device)

    def _panel(self, begin: int, end: int) -> tuple[Tensor, list[Any], dict[str, Any]]:
        """A panel's products, and arguments and options that both kernels share."""
        centres = slice(begin * self.shape[1], end * self.shape[1])
        products = multiply(self.x.rows, self.weight.rows[centres].T) if self.kept is None else self.kept
        arguments = [self.x.inverse, self.weight.inverse[centres], self.target, self.threshold]
        flags = {"S": self.shape[1], "HARD": self.threshold is not None}
        flags |= {f"TENSOR_{name}": isinstance(number, Tensor) for name, number in self._numbers().items()}
        return products, arguments, {**flags, **_OPTIONS}

    def _numbers(self) -> dict[str, float | Tensor]:
        return {"SCALE": self.scale, "HARDNESS": self.hardness}

    def log_sums(self, keep: bool) -> Tensor:
        """Log of the sum over all classes but the target, [M]; about -1e30 where there is none."""
        from .margin_softmax_kernels import class_sum_kernel

        M, parts = len(self.target), self._per_strip(2)
        for (begin, end), tiling, (maxima, sums) in zip(self.panels, self.grids, self._split(parts), strict=True):
            products, arguments, flags = self._panel(begin, end)
            numbers = self._numbers().values()
            class_sum_kernel[tiling](
                products, *arguments, maxima, sums, *numbers, begin, M, end - begin, _TILES, **flags
            )
            if keep and len(self.panels) == 1:
                self.kept = products
        if not self.panels:
            return torch.full((M,), NEVER, device=parts.device)
        highest = parts[0].amax(0)
        total = (parts[1] * (parts[0] - highest).exp_()).sum(0)
        return (highest.double() + total.double().log()).clamp_min_(NEVER).float()

    def _split(self, parts: Tensor) -> tuple[Tensor, ...]:
        """What belongs to each panel."""
        return torch.split(parts, self.strips, dim=1) if self.panels else ()

    def gradients(self, lse: Tensor, coef: Tensor, pull: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dx [M, D], dweight [C, S, D] and sum_j coef p f [M]."""
        from .margin_softmax_kernels import class_weight_kernel

        (_, S, D), M = self.shape, len(self.target)
        per_row = [values.float().contiguous() for values in (lse, coef, pull)]
        dx, parts = torch.zeros(M, D, device=lse.device), self._per_strip(1)
        dweight = dx.new_empty(self.shape) if M else dx.new_zeros(self.shape)
        for (begin, end), tiling, mean in zip(self.panels, self.grids, self._split(parts), strict=True):
            products, arguments, flags = self._panel(begin, end)
            weights = weights_like(products, self.x.rows)
            class_weight_kernel[tiling](
                products,
                weights,
                *arguments,
                *per_row,
                mean,
                *self._numbers().values(),
                begin,
                M,
                end - begin,
                _TILES,
                UPCAST=tiles.interpreted(),
                **flags,
            )
            centres = slice(begin * S, end * S)
            dx += multiply(weights, self.weight.rows[centres])
            self._finish(multiply(weights.T, self.x.rows), self.weight, centres, dweight.view(-1, D)[centres])
        self._finish(dx, self.x, slice(None), dx)
        return dx, dweight, parts[0].sum(0)

    def _finish(self, g: Tensor, tower: Tower, part: slice, out: Tensor) -> None:
        """From products of weights and rows to the gradient of raw rows [N, D]."""
        from .row_kernels import unit_gradient_kernel

        N, D = g.shape
        block_r, whole = row_block(D)
        if N == 0 or D == 0:
            return
        unit_gradient_kernel[(-(-N // block_r),)](
            g,
            tower.rows[part],
            out,
            self.scale,
            N,
            D=D,
            BLOCK_R=block_r,
            BLOCK_D=whole,
            EPS=EPS,
            NORMALIZE=tower.normalize,
            TENSOR_SCALE=isinstance(self.scale, Tensor),
            **row_options(whole),
        )
