"""k nearest neighbours in plain torch: tiles of the similarity matrix, of a fixed size, feed a running top-k.

Similarity and column travel as one integer: the bits of the fp32 number, made to sort as the number does, above the
column counted from the end. All keys differ, so that any top-k of them is the one answer, and nothing waits for a GPU.

A selection among 64-bit keys costs many times what a similarity does. So the tile is first reduced to the largest of
every 16 neighbouring columns, and only the columns of the k best of these groups are made into keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.contract import widened

WORKSPACE = 64 << 20  # bytes: the largest tile of the similarity matrix
_QUERY_TILE = 256  # rows of a tile: enough for an efficient matrix product, few enough that its columns stay long
_GROUP = 16
_LAST = 0xFFFFFFFF  # the key of column 0


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def forward(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [N, D]
    k: int,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """Values [Q, k] in at least fp32 and indices [Q, k] int64, the nearest first."""
    with torch.autocast(queries.device.type, enabled=False):
        left = scaled(queries.to(torch.promote_types(widened(queries).dtype, gallery.dtype)), metric)
        if left.dtype == torch.float64:
            values, indices = _sorted(left, scaled(gallery.double(), metric), k, metric)
        else:
            keys = [_search(tile, gallery, k, metric) for tile in torch.split(left, _QUERY_TILE)]
            values, indices = decode(torch.cat(keys))
        if metric == "l2":
            values = (left.square().sum(1, keepdim=True) - 2 * values).clamp_min_(0)
        return values, indices


def scaled(
    rows: Tensor,  # [M, D]
    metric: str,
) -> Tensor:
    """Rows in at least fp32, at unit length for the cosine."""
    rows = widened(rows).contiguous()
    return F.normalize(rows, dim=1, eps=1e-12) if metric == "cosine" else rows


def _similarity(
    queries: Tensor,  # [q, D]
    rows: Tensor,  # [n, D]
    metric: str,
) -> Tensor:
    """What ranks the rows, [q, n]: products, for l2 less half the row's square."""
    if metric == "l2":
        return torch.addmm(rows.square().sum(1) / -2, queries, rows.T)
    return queries @ rows.T


def _sorted(
    queries: Tensor,  # [Q, D] fp64
    gallery: Tensor,  # [N, D] fp64
    k: int,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """Similarities and indices [Q, k] by a stable sort: the bits of fp64 leave no room for a column."""
    tiles = torch.split(queries, max(1, WORKSPACE // (8 * len(gallery))))
    found = [_similarity(tile, gallery, metric).sort(dim=1, descending=True, stable=True) for tile in tiles]
    return torch.cat([value[:, :k] for value, _ in found]), torch.cat([index[:, :k] for _, index in found])


def decode(
    keys: Tensor,  # [Q, k] int64
) -> tuple[Tensor, Tensor]:
    """Similarities fp32 and columns int64 of keys."""
    bits = (keys >> 32).to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32), _LAST - (keys & _LAST)


def _encode(
    similarity: Tensor,  # fp32
    columns: Tensor,  # int64, of a shape that goes with it
) -> Tensor:
    """Keys int64: the larger the better."""
    bits = (similarity + 0.0).view(torch.int32)  # -0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(torch.int64) << 32) | (_LAST - columns)


def _candidates(
    similarity: Tensor,  # [q, n] fp32
    k: int,
) -> tuple[Tensor, Tensor]:
    """Similarities [q, c] and columns of some columns that hold the k nearest.

    A column whose group is not among the k best groups has k others before it: the best of each of those.
    """
    n, device = similarity.shape[1], similarity.device
    if n < 2 * k * _GROUP:
        return similarity, torch.arange(n, device=device)
    if n % _GROUP:
        similarity = F.pad(similarity, (0, -n % _GROUP), value=-torch.inf)
    groups = similarity.view(len(similarity), similarity.shape[1] // _GROUP, _GROUP)
    leaders = _encode(groups.amax(2), torch.arange(groups.shape[1], device=device))
    best = (_LAST - (leaders.topk(k, dim=1, sorted=False).values & _LAST))[:, :, None]
    columns = best * _GROUP + torch.arange(_GROUP, device=device)
    return groups.gather(1, best.expand(-1, -1, _GROUP)).flatten(1), columns.flatten(1)


def _search(
    queries: Tensor,  # [q, D] fp32
    gallery: Tensor,  # [N, D]
    k: int,
    metric: str,
) -> Tensor:
    """Keys [q, k] of the nearest, the nearest first."""
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    columns = max(1, WORKSPACE // (4 * max(len(queries), 1)))
    for begin in range(0, len(gallery), columns):
        tile = scaled(gallery[begin : begin + columns], metric)
        found, where = _candidates(_similarity(queries, tile, metric), k)
        keys = torch.cat((best, _encode(found, where + begin)), 1)
        best = keys.topk(min(k, keys.shape[1]), dim=1).values
    return best
