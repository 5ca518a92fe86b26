"""vicreg, barlow_twins, byol_loss (forward and backward) and knn_topk beside their peers, interleaved.

    python -m benchmarks.ops.bench_redundancy --threads 2

Times, memory and floor: `measure.py`. The error of a loss is that of the gradient against float64, norm-wise; that of a
search is the share of the true neighbours, in float64, that it misses for 64 of the queries.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.measure import Contenders, Judge, Op, Step, against, differentiate, run
from ssl_fast import barlow_twins, byol_loss, knn_topk, vicreg
from ssl_fast.ops.barlow_twins import barlow_twins_reference
from ssl_fast.ops.byol import byol_reference
from ssl_fast.ops.knn_topk import knn_topk_reference
from ssl_fast.ops.vicreg import vicreg_reference


def views(rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Two views whose embeddings agree as those of a half-trained network do (cosine about 0.7)."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, dim, generator=generator)
    return z, 0.7 * z + 0.7 * torch.randn(rows, dim, generator=generator)


def vicreg_contenders(rows: int, dim: int) -> dict[str, Step]:
    from lightly.loss import VICRegLoss

    # lightly takes the mean of both views' variance terms, the paper their sum.
    return {
        "ssl_fast": differentiate(lambda a, b: vicreg(a, b, variance=12.5), *views(rows, dim)),
        "plain form": differentiate(lambda a, b: vicreg_reference(a, b, variance=12.5), *views(rows, dim)),
        "lightly VICRegLoss": differentiate(VICRegLoss(), *views(rows, dim)),
    }


def barlow_contenders(rows: int, dim: int) -> dict[str, Step]:
    from lightly.loss import BarlowTwinsLoss

    return {
        "ssl_fast": differentiate(barlow_twins, *views(rows, dim)),
        "plain form": differentiate(barlow_twins_reference, *views(rows, dim)),
        "lightly BarlowTwinsLoss": differentiate(BarlowTwinsLoss(lambda_param=0.0051), *views(rows, dim)),
    }


def byol_contenders(rows: int, dim: int) -> dict[str, Step]:
    from lightly.loss import NegativeCosineSimilarity

    peer = NegativeCosineSimilarity()
    return {
        "ssl_fast": differentiate(byol_loss, *views(rows, dim)),
        "plain form": differentiate(byol_reference, *views(rows, dim)),
        "lightly NegativeCosineSimilarity": differentiate(lambda p, z: 2 + 2 * peer(p, z.detach()), *views(rows, dim)),
    }


def search_inputs(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Unit rows: the peers are given what `metric="cosine"` would make of them."""
    generator = torch.Generator().manual_seed(0)
    gallery = F.normalize(torch.randn(rows, dim, generator=generator), dim=1)
    near = gallery[torch.randint(rows, (queries,), generator=generator)]
    return F.normalize(near + 0.05 * torch.randn(queries, dim, generator=generator), dim=1), gallery


def search_contenders(num_queries: int, rows: int, dim: int, k: int) -> dict[str, Step]:
    import faiss
    from sklearn.neighbors import NearestNeighbors

    queries, gallery = search_inputs(num_queries, rows, dim)
    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatIP(dim)
    flat.add(gallery.numpy())
    brute = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(gallery.numpy())
    half = gallery.bfloat16()

    def whole_matrix() -> Tensor:
        return (queries @ gallery.T).topk(k, dim=1).indices

    return {
        "ssl_fast": lambda: knn_topk(queries, gallery, k)[1],
        "ssl_fast, bf16 gallery": lambda: knn_topk(queries, half, k)[1],
        "ssl_fast reference": lambda: knn_topk(queries, gallery, k, impl="reference")[1],
        "faiss IndexFlatIP": lambda: torch.from_numpy(flat.search(queries.numpy(), k)[1]),
        "scikit-learn brute": lambda: torch.from_numpy(brute.kneighbors(queries.numpy(), return_distance=False)),
        "matmul + topk": whole_matrix,
    }


PLAIN: dict[str, Callable[..., Tensor]] = {
    "vicreg": lambda a, b: vicreg_reference(a, b, variance=12.5),
    "barlow_twins": barlow_twins_reference,
    "byol_loss": byol_reference,
}


def judge_loss(op: str, *sizes: int) -> Judge:
    return against(differentiate(PLAIN[op], *(z.double() for z in views(*sizes)))())


def judge_search(num_queries: int, rows: int, dim: int, k: int) -> Judge:
    queries, gallery = search_inputs(num_queries, rows, dim)
    truth = knn_topk_reference(queries[:64].double(), gallery.double(), k)[1]
    return lambda name, found: f"{1 - (found[:64, :, None] == truth[:, None, :]).any(2).double().mean().item():.1e}"


def two_views(op: str, contenders: Contenders) -> Op:
    return Op(
        contenders=contenders,
        sizes=[(256, 8192), (1024, 8192), (1024, 512)],
        small=(256, 1024),
        judge=functools.partial(judge_loss, op),
        flop=lambda rows, dim: 8 * rows * dim * min(rows, dim),
    )


CONTENDERS = {
    "vicreg": two_views("vicreg", vicreg_contenders),
    "barlow_twins": two_views("barlow_twins", barlow_contenders),
    "byol_loss": Op(
        contenders=byol_contenders,
        sizes=[(4096, 256)],
        small=(4096, 256),
        judge=functools.partial(judge_loss, "byol_loss"),
        flop=lambda rows, dim: 0,
        times=4,
    ),
    "knn_topk": Op(
        contenders=search_contenders,
        sizes=[(10000, 50000, 512, 200)],
        small=(500, 5000, 128, 20),
        judge=judge_search,
        flop=lambda queries, rows, dim, k: 2 * queries * rows * dim,
    ),
}


if __name__ == "__main__":
    run(__doc__, "ops_redundancy_cpu", CONTENDERS, ("lightly", "faiss-cpu", "scikit-learn"), rounds=5)
