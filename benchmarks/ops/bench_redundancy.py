"""vicreg, barlow_twins, byol_loss (forward and backward) and knn_topk beside their peers, interleaved.

    python -m benchmarks.ops.bench_redundancy --threads 2

Milliseconds are p20, p50, p80 over rounds in which every contender runs once, in turning order; the first round is not
counted. Memory is the highest resident size during one step minus that before it, in a process of its own. The error of
a loss is that of the gradient against float64, norm-wise; that of a search is the share of the true neighbours, in
float64, that it misses for 64 of the queries. The floor is the arithmetic at the rate of torch's own large square fp32
product in the same run.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.bench_contrastive import Step, differentiate, interleaved, matmul_rate, peak_memory
from benchmarks.record import write
from ssl_fast import barlow_twins, byol_loss, knn_topk, vicreg
from ssl_fast.ops.barlow_twins import barlow_twins_reference
from ssl_fast.ops.byol import byol_reference
from ssl_fast.ops.knn_topk import knn_topk_reference
from ssl_fast.ops.vicreg import vicreg_reference

Row = dict[str, Any]


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


CONTENDERS: dict[str, Callable[..., dict[str, Step]]] = {
    "vicreg": vicreg_contenders,
    "barlow_twins": barlow_contenders,
    "byol_loss": byol_contenders,
    "knn_topk": search_contenders,
}
PLAIN: dict[str, Callable[..., Tensor]] = {
    "vicreg": lambda a, b: vicreg_reference(a, b, variance=12.5),
    "barlow_twins": barlow_twins_reference,
    "byol_loss": byol_reference,
}


def judge_loss(op: str, sizes: tuple[int, ...]) -> Callable[[Tensor], float]:
    """Norm-wise error of a gradient."""
    truth = differentiate(PLAIN[op], *(z.double() for z in views(*sizes)))()
    return lambda gradient: ((gradient.double() - truth).norm() / truth.norm()).item()


def judge_search(op: str, sizes: tuple[int, ...]) -> Callable[[Tensor], float]:
    """Share of the true neighbours that are missing."""
    queries, gallery = search_inputs(*sizes[:3])
    truth = knn_topk_reference(queries[:64].double(), gallery.double(), sizes[3])[1]
    return lambda found: 1 - (found[:64, :, None] == truth[:, None, :]).any(2).double().mean().item()


def measure(op: str, sizes: tuple[int, ...], flop: float, rounds: int, threads: int) -> list[Row]:
    steps = CONTENDERS[op](*sizes)
    judge = (judge_search if op == "knn_topk" else judge_loss)(op, sizes)
    times = interleaved(steps, rounds)
    floor = flop / matmul_rate() * 1e3
    rows = []
    for name, values in times.items():
        cut = statistics.quantiles(values, n=5)
        row: Row = {"op": op, "provider": name, "sizes": "x".join(map(str, sizes))}
        row |= {"p20_ms": round(cut[0], 2), "p50_ms": round(statistics.median(values), 2), "p80_ms": round(cut[-1], 2)}
        row |= {
            "extra_mb": round(peak_memory(CONTENDERS[op], sizes, name, threads), 1),
            "error": f"{judge(steps[name]()):.1e}",
        }
        row |= {"floor_ms": round(floor, 1), "threads": threads}
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for samples, dim in ((256, 8192), (1024, 8192), (1024, 512)):
        small = min(samples, dim)
        rows += measure("vicreg", (samples, dim), 8 * samples * dim * small, args.rounds, args.threads)
        rows += measure("barlow_twins", (samples, dim), 8 * samples * dim * small, args.rounds, args.threads)
    rows += measure("byol_loss", (4096, 256), 0, 4 * args.rounds, args.threads)
    rows += measure("knn_topk", (10000, 50000, 512, 200), 2 * 10000 * 50000 * 512, args.rounds, args.threads)
    write("ops_redundancy_cpu", rows, ("lightly", "faiss-cpu", "scikit-learn"))


if __name__ == "__main__":
    main()
