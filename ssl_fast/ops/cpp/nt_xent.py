"""NT-Xent, SupCon and DCL on the CPU: csrc/cpu/nt_xent_forward.cpp and nt_xent_backward.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.classes import Classes
from ssl_fast.ops.cpp import DTYPES, module, result_dtype, unavailable

__all__ = ["backward", "forward", "unavailable"]


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
    ids = 0 if classes is None else classes.ids.data_ptr()
    dtype = result_dtype(x.dtype)
    loss, log_l = torch.empty(end - begin, dtype=dtype), torch.empty(end - begin, dtype=dtype)
    module().nt_xent_forward(
        x.data_ptr(), DTYPES[x.dtype], positive.data_ptr(), ids, N, D, begin, end, float(inv_temperature),
        normalize, decoupled, loss.data_ptr(), log_l.data_ptr(), torch.get_num_threads(),
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
    ids = 0 if classes is None else classes.ids.data_ptr()
    dtype = result_dtype(x.dtype)
    coef, log_l = coef.to(dtype).contiguous(), log_l.to(dtype).contiguous()
    dx, zdz = torch.empty(end - begin, D, dtype=dtype), torch.empty(end - begin, dtype=dtype)
    module().nt_xent_backward(
        x.data_ptr(), DTYPES[x.dtype], positive.data_ptr(), ids, coef.data_ptr(), log_l.data_ptr(), N, D,
        begin, end, float(inv_temperature), normalize, decoupled, dx.data_ptr(), zdz.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return dx, zdz
