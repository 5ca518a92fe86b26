"""The C++ search for nearest neighbours, for every instruction set this processor has: bits, threads, forks, memory."""

import os

import pytest
import torch
from torch import Tensor

from ssl_fast.ops.cpp import knn_topk
from ssl_fast.ops.knn_topk import METRICS, knn_topk_reference


def tensors(Q: int, N: int, D: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(Q * N + D)
    queries, gallery = (torch.randn(rows, D, generator=random, dtype=torch.float64) for rows in (Q, N))
    return queries.to(dtype), gallery.to(dtype)


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize(("Q", "N", "D", "k"), [(1, 5, 2, 5), (193, 385, 17, 30), (7, 4000, 64, 100), (400, 192, 3, 1)])
def test_whole_numbers_are_exact(isa: str, Q: int, N: int, D: int, k: int, metric: str) -> None:
    """Small integers: sums have no rounding, and ties abound."""
    random = torch.Generator().manual_seed(N)
    queries, gallery = (torch.randint(-2, 3, (rows, D), generator=random) for rows in (Q, N))
    for dtype in (torch.float32, torch.float64):
        found = knn_topk.forward(queries.to(dtype), gallery.to(dtype), k, metric)
        expected = knn_topk_reference(queries.to(dtype), gallery.to(dtype), k, metric=metric)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_literal(isa: str, dtype: torch.dtype) -> None:
    queries, gallery = tensors(200, 1500, 33, dtype)
    for metric in METRICS:
        values, indices = knn_topk.forward(queries, gallery, 40, metric)
        exact = knn_topk_reference(queries.double(), gallery.double(), 40, metric=metric)
        bound = 1e-12 if dtype == torch.float64 else 1e-6 if metric == "cosine" else 5e-5
        assert (values - exact[0]).abs().max() < bound
        assert (indices != exact[1]).sum() <= (
            0 if dtype == torch.float64 else 8
        )  # neighbours closer than the rounding


def test_bits_do_not_depend_on_threads(threads: None) -> None:
    queries, gallery = tensors(450, 9000, 24)
    gallery[4500:] = gallery[:4500]  # each row twice, on either side of where the gallery is cut
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(knn_topk.forward(queries, gallery, 70, "cosine"))
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0]) and torch.equal(result[1], results[0][1])


def test_rows_that_are_not_finite_do_not_spoil_the_others(isa: str) -> None:
    queries, gallery = tensors(5, 900, 16)
    gallery[3], gallery[500, 0], queries[4] = torch.nan, torch.inf, torch.nan
    values, indices = knn_topk.forward(queries, gallery, 20, "l2")
    clean = torch.cat((gallery[:3], gallery[4:500], gallery[501:]))
    expected = knn_topk.forward(queries[:4], clean, 20, "l2")[0]
    assert torch.equal(values[:4], expected)
    assert bool(((indices >= 0) & (indices < 900)).all())


def test_survives_fork(threads: None) -> None:
    torch.set_num_threads(2)
    queries, gallery = tensors(64, 8000, 32)
    expected = knn_topk.forward(queries, gallery, 9, "dot")
    child = os.fork()  # in the child only our kernel runs: torch's own OpenMP threads do not survive a fork
    if child == 0:
        found = knn_topk.forward(queries, gallery, 9, "dot")
        os._exit(0 if torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
