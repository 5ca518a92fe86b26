"""Margin softmax on the CPU: csrc/cpu/margin_softmax.cpp, and the whole of a loss in one call: margin_loss.cpp."""

from typing import Any

import torch
from torch import Tensor

from ssl_fast.ops.class_panels import Negatives
from ssl_fast.ops.cpp import DTYPES, NO_GRADIENTS, beside, module, result_dtype, scalar_beside
from ssl_fast.ops.cpp import unavailable as _unavailable

_MOST_CENTRES = 192  # of a class: they lie in one tile


def unavailable(*tensors: Tensor) -> str | None:
    """Why the C++ kernel cannot take (x, weight); None when it can."""
    for tensor in tensors[1:]:
        if tensor.dim() == 3 and tensor.shape[1] > _MOST_CENTRES:
            return f"the C++ kernel takes at most {_MOST_CENTRES} sub-centres a class, got {tensor.shape[1]}"
    return _unavailable(*tensors)


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
    lse = torch.empty(len(x), dtype=result_dtype(x.dtype), device="cpu")
    rows = (phi, slope, row_weight)
    return lse, *_run(x, weight, target, negatives, normalize, False, rows, lse, row_weight is not None)


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
    lse = lse.to(result_dtype(x.dtype)).contiguous()
    return _run(x, weight, target, negatives, normalize, True, (None, pull, coef), lse, True)


def adaface_margins(
    x: Tensor,  # [N, D]
    norm_mean: float,
    norm_std: float,
    margin: float,
    concentration: float,
) -> Tensor:
    """m2 and m3 of each row, [2, N]; at least fp32."""
    x = x.contiguous()
    N, D = x.shape
    rows = torch.empty((2, N), dtype=result_dtype(x.dtype), device="cpu")
    module().adaface_margins(
        x, DTYPES[x.dtype], N, D, norm_mean, norm_std, margin, concentration, rows, torch.get_num_threads()
    )
    return rows


def targets(
    labels: Tensor,  # [N] int64
    num_classes: int,
    ignore_index: int,
    left_out: int,
) -> tuple[Tensor, int]:
    """Labels with `left_out` for the ignored, [N]; and the first row whose label is no class, or -1."""
    labels = labels.contiguous()
    target = torch.empty_like(labels)
    return target, module().margin_targets(labels, labels.shape[0], num_classes, ignore_index, left_out, target)


def objective(
    x: Tensor,  # [N, D]
    weight: Tensor,  # [C, D] or [C, S, D]
    target: Tensor,  # [N] int64, negative: none
    row_margins: Tensor | None,  # [2, N]
    hardness: Tensor | None,  # []
    scale: float,
    margin: list[float],  # m1, m2, m3
    monotone: bool,
    exact: bool,
    normalize: bool,
    average: bool,
    with_grad: bool,
    with_dscale: bool,
) -> tuple[Tensor | None, ...]:
    """Mean or sum over the rows with a target [] and, when wanted, dx, dweight and dscale []; all in one call."""
    dtype = result_dtype(x.dtype)
    x, weight = x.contiguous(), weight.contiguous()
    row_margins = None if row_margins is None else row_margins.detach().to(dtype).contiguous()
    value = scalar_beside(x)
    grads = beside(dtype, x, weight, value if with_dscale else None) if with_grad else NO_GRADIENTS[:3]
    N, D = x.shape
    num_centres = weight.shape[1] if weight.dim() == 3 else 1
    module().margin_loss(
        x, DTYPES[x.dtype], weight, DTYPES[weight.dtype], target, N, weight.shape[0], num_centres, D, scale, normalize,
        *margin, monotone, exact, row_margins, hardness is not None, 0.0 if hardness is None else float(hardness),
        average, value, *grads, torch.get_num_threads(),
    )  # fmt: skip
    return value, *grads


def _run(
    x: Tensor,  # [M, D]
    weight: Tensor,  # [C, S, D]
    target: Tensor,  # [M]
    negatives: Negatives,
    normalize: bool,
    lse_given: bool,
    rows: tuple[Tensor | None, Tensor, Tensor | None],  # phi, slope (or pull) and row_weight (or coef), each [M]
    lse: Tensor,  # [M]
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, target = x.contiguous(), weight.contiguous(), target.contiguous()
    dtype = result_dtype(x.dtype)
    shapes = (x.shape, weight.shape, lse.shape) if with_grad else ()
    grads: list[Any] = [torch.empty(shape, dtype=dtype, device="cpu") for shape in shapes] or [None] * 3
    columns = [None if t is None else t.to(dtype).contiguous() for t in (negatives.threshold, *rows)]
    module().margin_softmax(
        x, DTYPES[x.dtype], weight, DTYPES[weight.dtype], target, len(x), *weight.shape, float(negatives.scale),
        float(negatives.hardness), normalize, lse_given, *columns, lse, *grads, torch.get_num_threads(),
    )  # fmt: skip
    return grads[0], grads[1], grads[2]
