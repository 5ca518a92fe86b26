"""SigLIP's loss on the CPU: csrc/cpu/siglip_loss.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, NO_GRADIENTS, beside, module, result_dtype, scalar_beside, unavailable

__all__ = ["forward", "objective", "unavailable"]


def forward(
    image: Tensor,  # [M, D]
    text: Tensor,  # [M, D]
    coef: Tensor | None,  # [M]
    rows: tuple[int, int],
    scale: float | Tensor,
    bias: float | Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Loss [R] of the images begin..end and, given `coef`, the gradients of sum_i coef_i loss_i over all images i.

    dimage, dtext [R, D] of the pairs begin..end, and these images' shares [R] of d/dscale and d/dbias.
    """
    image, text = image.contiguous(), text.contiguous()
    M, D = image.shape
    begin, end = rows
    R, dtype = end - begin, result_dtype(image.dtype)
    coef = None if coef is None else coef.to(dtype).contiguous()
    loss = torch.empty(R, dtype=dtype, device="cpu")
    shapes = ((R, D), (R, D), (R,), (R,))
    grads = [None if coef is None else torch.empty(shape, dtype=dtype, device="cpu") for shape in shapes]
    module().siglip_loss_forward(
        image, text, DTYPES[image.dtype], coef, M, D, begin,
        end, float(scale), float(bias), normalize, loss,
        *grads, torch.get_num_threads(),
    )  # fmt: skip
    dimage, dtext, dscale, dbias = grads
    return loss, dimage, dtext, dscale, dbias


def objective(
    image: Tensor,  # [M, D]
    text: Tensor,  # [M, D]
    weight: Tensor | None,  # [M]
    scale: float,
    bias: float,
    normalize: bool,
    average: bool,
    with_grad: bool,
    with_dscale: bool,
    with_dbias: bool,
) -> tuple[Tensor | None, ...]:
    """Mean or sum over the images [] and, when wanted, dimage, dtext [M, D], dweight [M], dscale [], dbias []."""
    dtype = result_dtype(image.dtype)
    value = scalar_beside(image)
    image, text = image.contiguous(), text.contiguous()
    weight = None if weight is None else weight.to(dtype).contiguous()
    grads = NO_GRADIENTS[:5]
    if with_grad:
        numbers = (value if with_dscale else None, value if with_dbias else None)
        grads = beside(dtype, image, text, weight, *numbers)
    M, D = image.shape
    module().siglip_loss(
        image, text, DTYPES[image.dtype], M, D, scale, bias, normalize, weight, average,
        value, *grads, torch.get_num_threads(),
    )  # fmt: skip
    return value, *grads
