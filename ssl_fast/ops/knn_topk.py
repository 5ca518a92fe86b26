r"""Exact k nearest neighbours of each query among the rows of a gallery, without the Q x N similarity matrix.

    cosine  <q_i, g_j> / (|q_i| |g_j|), the largest        dot  <q_i, g_j>, the largest
    l2      |q_i - g_j|^2 = |q_i|^2 + |g_j|^2 - 2 <q_i, g_j>, the smallest
Neighbours are ordered by that value and, where values are equal, by their index: the answer is a function of the inputs
alone, whatever the number of threads. Nothing is approximated: each pair is compared, tile by tile.

Letters: Q queries, N rows of the gallery, D feature, k neighbours.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import check_impl, choose

METRICS = ("cosine", "l2", "dot")


def knn_topk_reference(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [N, D]
    k: int,
    *,
    metric: str = "cosine",
) -> tuple[Tensor, Tensor]:
    """The equations in plain torch, with the whole Q x N matrix and a stable sort of its rows: oracle and baseline."""
    queries, gallery = contract.widened(queries), contract.widened(gallery)
    if metric == "cosine":
        queries, gallery = F.normalize(queries, dim=1, eps=1e-12), F.normalize(gallery, dim=1, eps=1e-12)
    value = queries @ gallery.T
    if metric == "l2":
        value = (queries.square().sum(1, keepdim=True) + gallery.square().sum(1) - 2 * value).clamp_min(0)
    value, index = value.sort(dim=1, descending=metric != "l2", stable=True)
    return value[:, :k], index[:, :k]


def _knn_topk(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [N, D]
    k: int,
    metric: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    kernel = choose("knn_topk", impl, queries, gallery)
    return kernel.forward(queries.detach(), gallery.detach(), k, metric)  # type: ignore[no-any-return]


def _fake(queries: Tensor, gallery: Tensor, k: int, metric: str, impl: str) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(queries.dtype, gallery.dtype), torch.float32)
    shape = (len(queries), k)
    return queries.new_empty(shape, dtype=dtype), queries.new_empty(shape, dtype=torch.int64)


contract.register(
    "knn_topk(Tensor queries, Tensor gallery, int k, str metric, str impl) -> (Tensor, Tensor)", _knn_topk, _fake
)


def knn_topk(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [N, D]
    k: int,
    *,
    metric: str = "cosine",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of the gallery for each query, the nearest first; equal values by the smaller index.

    Rows are compared with fp32 accumulation (fp64 where one of the inputs is fp64), under autocast too. Memory beyond
    the inputs is O((Q + N) D + Q k) and never Q N. There is no gradient. Rows are to be finite.

    Args:
        queries: [Q, D], any floating-point dtype.
        gallery: [N, D], any floating-point dtype, on the same device.
        k: neighbours, 1 <= k <= N.
        metric: "cosine" (a zero row has cosine 0 with all others), "dot", or "l2": the squared distance, whose rounding
            error is that of |q|^2 + |g|^2.
        impl: "auto", "cpp" or "reference".

    Returns:
        values [Q, k], at least fp32: similarities from the largest or squared distances from the smallest; and
        indices [Q, k] int64 into the gallery.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here.

    Example:
        >>> gallery = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
        >>> values, indices = knn_topk(torch.tensor([[0.0, 3.0]]), gallery, 2)
        >>> values.tolist(), indices.tolist()
        ([[1.0, 1.0]], [[1, 2]])
    """
    contract.check_rows("queries", queries)
    contract.check_rows("gallery", gallery)
    if gallery.shape[1] != queries.shape[1] or gallery.device != queries.device:
        raise ValueError(
            f"gallery must have rows of {queries.shape[1]} numbers on {queries.device} as queries has, "
            f"got {gallery.shape[1]} on {gallery.device}"
        )
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k must be 1 to {len(gallery)} (the rows of the gallery), got {k}")
    if metric not in METRICS:
        raise ValueError(f"metric must be 'cosine', 'l2' or 'dot', got {metric!r}")
    check_impl("knn_topk", impl)
    if contract.under_functorch():
        return knn_topk_reference(queries.detach(), gallery.detach(), k, metric=metric)
    run: Any = torch.ops.ssl_fast.knn_topk if contract.under_tracing() else _knn_topk
    values, indices = run(queries, gallery, k, metric, impl)
    return values, indices
