"""NT-Xent, SupCon and DCL on the CPU: csrc/cpu/nt_xent_forward.cpp, nt_xent_backward.cpp and self_contrast.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.classes import Classes
from ssl_fast.ops.cpp import DTYPES, NO_GRADIENTS, beside, module, result_dtype, scalar_beside, unavailable

__all__ = ["backward", "forward", "objective", "unavailable"]


def forward(
    x: Tensor,  # [N, D] raw rows of all views and ranks
    positive: Tensor,  # [N] int64
    rows: tuple[int, int],
    inv_temperature: float | Tensor,
    normalize: bool,
    classes: Classes | None = None,
    decoupled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss [R] of rows begin..end and the log [R] of their total normalisers sum_{j != i} exp(s_ij).

    `decoupled`: the positive is in no sum. log_l is infinite for a row that has no loss.
    """
    x, positive = x.contiguous(), positive.contiguous()
    N, D = x.shape
    begin, end = rows
    ids = None if classes is None else classes.ids
    dtype = result_dtype(x.dtype)
    loss, log_l = (
        torch.empty(end - begin, dtype=dtype, device="cpu"),
        torch.empty(end - begin, dtype=dtype, device="cpu"),
    )
    module().nt_xent_forward(
        x, DTYPES[x.dtype], positive, ids, N, D, begin, end, float(inv_temperature),
        normalize, decoupled, loss, log_l, torch.get_num_threads(),
    )  # fmt: skip
    return loss, log_l


def backward(
    x: Tensor,  # [N, D]
    positive: Tensor,  # [N] int64
    coef: Tensor,  # [N] d objective / d loss_i, of all rows
    log_l: Tensor,  # [N]
    rows: tuple[int, int],
    inv_temperature: float | Tensor,
    normalize: bool,
    classes: Classes | None = None,
    decoupled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradient [R, D] of sum_i coef_i loss_i (over all i) with respect to x[begin:end], and <z_i, dz_i> [R]."""
    x, positive = x.contiguous(), positive.contiguous()
    N, D = x.shape
    begin, end = rows
    ids = None if classes is None else classes.ids
    dtype = result_dtype(x.dtype)
    coef, log_l = coef.to(dtype).contiguous(), log_l.to(dtype).contiguous()
    dx, zdz = (
        torch.empty(end - begin, D, dtype=dtype, device="cpu"),
        torch.empty(end - begin, dtype=dtype, device="cpu"),
    )
    module().nt_xent_backward(
        x, DTYPES[x.dtype], positive, ids, coef, log_l, N, D,
        begin, end, float(inv_temperature), normalize, decoupled, dx, zdz,
        torch.get_num_threads(),
    )  # fmt: skip
    return dx, zdz


def objective(
    x: Tensor,  # [R, D] the views one after the other, or the first of two
    second: Tensor | None,  # [R, D] then the second
    weight: Tensor | None,  # [N]
    inv_temperature: float,
    normalize: bool,
    average: bool,
    labels: Tensor | None,  # [R] int64
    ignore_index: int,
    num_views: int,
    decoupled: bool,
    with_grad: bool,
    with_dtemperature: bool,
) -> tuple[Tensor | None, ...]:
    """Mean or sum over the rows [] and, when wanted, dx, dsecond, dweight [N] and dtemperature []; all in one call."""
    dtype = result_dtype(x.dtype)
    value = scalar_beside(x)
    x, second = x.contiguous(), None if second is None else second.contiguous()
    weight = None if weight is None else weight.to(dtype).contiguous()
    labels = None if labels is None else labels.contiguous()
    grads = NO_GRADIENTS[:4]
    if with_grad:
        grads = beside(dtype, x, second, weight, value if with_dtemperature else None)
    num_rows, D = x.shape
    module().self_contrast(
        x, second, DTYPES[x.dtype], num_rows if second is None else 2 * num_rows, D, num_views,
        labels, ignore_index, weight, inv_temperature, normalize, decoupled, average,
        value, *grads, torch.get_num_threads(),
    )  # fmt: skip
    return value, *grads
