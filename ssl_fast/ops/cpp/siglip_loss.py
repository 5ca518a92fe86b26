"""SigLIP's loss on the CPU: csrc/cpu/siglip_loss.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, module, result_dtype, unavailable

__all__ = ["forward", "unavailable"]


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
    loss = torch.empty(R, dtype=dtype)
    shapes = ((R, D), (R, D), (R,), (R,))
    grads = [None if coef is None else torch.empty(shape, dtype=dtype) for shape in shapes]
    module().siglip_loss_forward(
        image.data_ptr(), text.data_ptr(), DTYPES[image.dtype], 0 if coef is None else coef.data_ptr(), M, D, begin,
        end, float(scale), float(bias), normalize, loss.data_ptr(),
        *(0 if grad is None else grad.data_ptr() for grad in grads), torch.get_num_threads(),
    )  # fmt: skip
    dimage, dtext, dscale, dbias = grads
    return loss, dimage, dtext, dscale, dbias
