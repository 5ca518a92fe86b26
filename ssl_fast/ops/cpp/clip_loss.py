"""CLIP's loss on the CPU: csrc/cpu/clip_loss.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, NO_GRADIENTS, beside, module, result_dtype, scalar_beside, unavailable

__all__ = ["backward", "forward", "objective", "unavailable"]


def forward(
    image: Tensor,  # [M, D]
    text: Tensor,  # [M, D]
    rows: tuple[int, int],
    scale: float | Tensor,
    normalize: bool,
    sides: int,
) -> tuple[Tensor, Tensor]:
    """Loss [S, R] and log of the whole normaliser [S, R], float64, of the pairs begin..end in each direction."""
    image, text = image.contiguous(), text.contiguous()
    M, D = image.shape
    begin, end = rows
    loss = torch.empty(sides, end - begin, dtype=result_dtype(image.dtype), device="cpu")
    log_l = torch.empty(sides, end - begin, dtype=torch.float64, device="cpu")
    module().clip_loss_forward(
        image, text, DTYPES[image.dtype], M, D, begin, end, float(scale), normalize, sides,
        loss, log_l, torch.get_num_threads(),
    )  # fmt: skip
    return loss, log_l


def backward(
    image: Tensor,  # [M, D]
    text: Tensor,  # [M, D]
    coef: Tensor,  # [S, M]
    log_l: Tensor,  # [S, M] float64
    rows: tuple[int, int],
    scale: float | Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """d(sum coef loss)/dimage [R, D], d/dtext [R, D] of the pairs begin..end, and their shares [R] of d/dscale."""
    image, text = image.contiguous(), text.contiguous()
    M, D = image.shape
    begin, end = rows
    dtype = result_dtype(image.dtype)
    coef, log_l = coef.to(dtype).contiguous(), log_l.contiguous()
    dimage, dtext = (torch.empty(end - begin, D, dtype=dtype, device="cpu") for _ in range(2))
    dscale = torch.empty(end - begin, dtype=dtype, device="cpu")
    module().clip_loss_backward(
        image, text, DTYPES[image.dtype], coef, log_l, M, D, begin, end,
        float(scale), normalize, len(coef), dimage, dtext, dscale,
        torch.get_num_threads(),
    )  # fmt: skip
    return dimage, dtext, dscale


def objective(
    image: Tensor,  # [M, D]
    text: Tensor,  # [M, D]
    weight: Tensor | None,  # [M]
    scale: float,
    normalize: bool,
    sides: int,
    average: bool,
    with_grad: bool,
    with_dscale: bool,
) -> tuple[Tensor | None, ...]:
    """Mean or sum over pairs and sides [] and, when wanted, dimage, dtext [M, D], dweight [M], dscale []."""
    dtype = result_dtype(image.dtype)
    value = scalar_beside(image)
    image, text = image.contiguous(), text.contiguous()
    weight = None if weight is None else weight.to(dtype).contiguous()
    grads = NO_GRADIENTS[:4]
    if with_grad:
        grads = beside(dtype, image, text, weight, value if with_dscale else None)
    M, D = image.shape
    module().clip_loss(
        image, text, DTYPES[image.dtype], M, D, scale, normalize, sides, weight,
        average, value, *grads, torch.get_num_threads(),
    )  # fmt: skip
    return value, *grads
