"""k nearest neighbours on the CPU: csrc/cpu/knn_topk.cpp."""

import torch
from torch import Tensor

from ssl_fast.ops.cpp import DTYPES, module, result_dtype, unavailable

__all__ = ["forward", "unavailable"]

_METRICS = {"cosine": 0, "dot": 1, "l2": 2}


def forward(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [N, D]
    k: int,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """Values [Q, k] in at least fp32 and indices [Q, k] int64, the nearest first."""
    queries, gallery = queries.contiguous(), gallery.contiguous()
    values = torch.empty(
        len(queries), k, dtype=result_dtype(torch.promote_types(queries.dtype, gallery.dtype)), device="cpu"
    )
    indices = torch.empty(len(queries), k, dtype=torch.int64, device="cpu")
    module().knn_topk(
        queries.data_ptr(), DTYPES[queries.dtype], gallery.data_ptr(), DTYPES[gallery.dtype], *queries.shape[:1],
        *gallery.shape, k, _METRICS[metric], values.data_ptr(), indices.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return values, indices
