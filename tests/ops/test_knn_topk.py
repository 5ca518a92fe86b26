"""Exact k nearest neighbours: every implementation against the sorted matrix of all pairs in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_fast import knn_topk
from ssl_fast.ops.knn_topk import METRICS, knn_topk_reference
from ssl_fast.ops.reference import knn_topk as plain

OP = "knn_topk"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows(num_queries: int, num_rows: int, dim: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Queries [Q, D] and a gallery [N, D] of any lengths; the queries lie near some of its rows."""
    generator = torch.Generator().manual_seed(num_queries * num_rows + dim)
    gallery = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    gallery *= torch.rand(num_rows, 1, generator=generator, dtype=torch.float64) + 0.5
    near = gallery[torch.randint(num_rows, (num_queries,), generator=generator)]
    queries = near + torch.randn(num_queries, dim, generator=generator, dtype=torch.float64)
    return queries.to(dtype), gallery.to(dtype)


def all_values(queries: Tensor, gallery: Tensor, metric: str) -> Tensor:
    """[Q, N] in float64, by the definition."""
    queries, gallery = queries.cpu().double(), gallery.cpu().double()
    if metric == "l2":
        return torch.cdist(queries, gallery, compute_mode="donot_use_mm_for_euclid_dist").square()
    if metric == "cosine":
        queries, gallery = queries / queries.norm(dim=1, keepdim=True), gallery / gallery.norm(dim=1, keepdim=True)
    return queries @ gallery.T


def check(queries: Tensor, gallery: Tensor, k: int, metric: str, impl: str, tolerance: float) -> None:
    """The values are those of the indices, none is missing that is nearer by more than the tolerance, order is kept."""
    values, indices = knn_topk(queries, gallery, k, metric=metric, impl=impl)
    assert values.shape == indices.shape == (len(queries), k) and indices.dtype == torch.int64
    assert values.dtype == torch.promote_types(queries.dtype, torch.float32)
    values, indices = values.cpu().double(), indices.cpu()
    exact = all_values(queries, gallery, metric)
    best = exact.sort(dim=1, descending=metric != "l2").values[:, :k]
    scale = (
        1.0 if metric == "cosine" else (queries.double().norm(dim=1).max() * gallery.double().norm(dim=1).max()).item()
    )
    assert (values - exact.gather(1, indices)).abs().max() <= tolerance * scale
    assert (values - best).abs().max() <= tolerance * scale
    better = values.diff(dim=1) * (1 if metric == "l2" else -1)
    assert bool(((better > 0) | ((better == 0) & (indices.diff(dim=1) > 0))).all()), "by value, then by index"
    assert all(len(set(row)) == k for row in indices.tolist()), "no row twice"


# The definition


def test_reference_is_the_definition() -> None:
    queries, gallery = rows(9, 40, 7)
    for metric in METRICS:
        exact = all_values(queries, gallery, metric)
        values, indices = knn_topk_reference(queries, gallery, 5, metric=metric)
        expected = exact.topk(5, dim=1, largest=metric != "l2")
        torch.testing.assert_close(values, expected.values)
        assert torch.equal(indices, expected.indices)


def test_numbers_worked_by_hand(impl: str, device: str) -> None:
    gallery = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0], [6.0, 8.0]], device=device)
    query = torch.tensor([[0.0, 5.0]], device=device)
    values, indices = knn_topk(query, gallery, 4, impl=impl)
    assert indices.tolist() == [[2, 1, 4, 0]]  # cosines 1, 0.8, 0.8, 0 and, left out, 0: equal ones by index
    torch.testing.assert_close(values.cpu(), torch.tensor([[1.0, 0.8, 0.8, 0.0]]))
    values, indices = knn_topk(query, gallery, 2, metric="dot", impl=impl)
    assert indices.tolist() == [[4, 1]] and values.tolist() == [[40, 20]]
    values, indices = knn_topk(query, gallery, 5, metric="l2", impl=impl)
    assert indices.tolist() == [[2, 1, 0, 3, 4]] and values.tolist() == [[9, 10, 26, 26, 45]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("num_queries", "num_rows", "dim", "k"),
    [(1, 1, 1, 1), (3, 70, 5, 70), (200, 1000, 33, 10), (5, 3000, 64, 200), (65, 129, 128, 1)],
)
def test_every_pair_is_compared(
    num_queries: int, num_rows: int, dim: int, k: int, metric: str, dtype: torch.dtype, impl: str, device: str
) -> None:
    queries, gallery = (t.to(device) for t in rows(num_queries, num_rows, dim, dtype))
    check(queries, gallery, k, metric, impl, 2e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_float64(metric: str, impl: str) -> None:
    queries, gallery = rows(30, 500, 20)
    check(queries, gallery, 40, metric, impl, 1e-13)
    expected = knn_topk_reference(queries, gallery, 40, metric=metric)
    assert torch.equal(knn_topk(queries, gallery, 40, metric=metric, impl=impl)[1], expected[1])


@pytest.mark.parametrize("gallery_dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_gallery_of_another_dtype(gallery_dtype: torch.dtype, impl: str, device: str) -> None:
    queries, gallery = rows(20, 300, 16, torch.float32)
    gallery = gallery.to(gallery_dtype)
    values, indices = knn_topk(queries.to(device), gallery.to(device), 7, impl=impl)
    wide = torch.promote_types(gallery_dtype, torch.float32)
    expected = knn_topk_reference(queries.to(wide), gallery.to(wide), 7)
    assert torch.equal(indices.cpu(), expected[1]) and values.dtype == wide
    torch.testing.assert_close(values.cpu(), expected[0], rtol=0, atol=1e-6)


# Ties


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 4, 30, 90])
def test_equal_rows_come_by_their_index(k: int, metric: str, impl: str, device: str) -> None:
    gallery = torch.randn(30, 24, generator=torch.Generator().manual_seed(0)).to(device).repeat(40, 1)
    indices = knn_topk(gallery[:30], gallery, k, metric=metric, impl=impl)[1]
    groups = indices % 30
    for row in range(30):
        for group in groups[row].unique().tolist():
            found = indices[row][groups[row] == group]
            expected = torch.arange(len(found), device=device) * 30 + group
            assert torch.equal(found, expected), "the first copies, in order"
    if metric != "dot":
        assert bool((groups[:, 0].cpu() == torch.arange(30)).all())


def test_all_rows_equal(impl: str, device: str) -> None:
    ones = torch.ones(500, 8, device=device)
    for metric in METRICS:
        indices = knn_topk(ones[:3], ones, 60, metric=metric, impl=impl)[1]
        assert torch.equal(indices.cpu(), torch.arange(60).expand(3, -1))


def test_zero_rows(impl: str, device: str) -> None:
    gallery = torch.zeros(50, 8, device=device)
    gallery[7] = 1
    values, indices = knn_topk(torch.zeros(2, 8, device=device), gallery, 5, impl=impl)
    assert not values.any() and torch.equal(indices.cpu(), torch.arange(5).expand(2, -1))
    values, indices = knn_topk(torch.ones(1, 8, device=device), gallery, 3, impl=impl)
    assert indices.tolist() == [[7, 0, 1]] and values[0, 0].item() == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 7, 90])
def test_the_smaller_index_among_thousands_of_equal_values(k: int, impl: str, device: str) -> None:
    """Five different values among 3,001 columns, so that whole groups of columns are equal."""
    generator = torch.Generator().manual_seed(k)
    gallery = torch.randint(-2, 3, (3001, 1), generator=generator).float()
    queries = torch.tensor([[1.0], [-1.0], [0.0]])
    found = knn_topk(queries.to(device), gallery.to(device), k, metric="dot", impl=impl)[1]
    assert torch.equal(found.cpu(), knn_topk_reference(queries, gallery, k, metric="dot")[1])


# Kinds of inputs


def test_workspace_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.float64):
        queries, gallery = rows(600, 900, 8, dtype)
        whole = knn_topk(queries, gallery, 20, impl="reference")
        monkeypatch.setattr(plain, "WORKSPACE", 100_000)
        small = knn_topk(queries, gallery, 20, impl="reference")
        assert torch.equal(small[1], whole[1])
        torch.testing.assert_close(small[0], whole[0], rtol=0, atol=1e-6)
        monkeypatch.undo()


def test_not_contiguous_and_unaligned(impl: str, device: str) -> None:
    queries, gallery = (t.to(device) for t in rows(40, 700, 34, torch.float32))
    expected = knn_topk(queries[::2, 1::2].contiguous(), gallery[1::3, ::2].contiguous(), 9, impl=impl)
    found = knn_topk(queries[::2, 1::2], gallery[1::3, ::2], 9, impl=impl)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_no_queries(impl: str, device: str) -> None:
    for metric in METRICS:
        gallery = torch.ones(4, 3, device=device)
        values, indices = knn_topk(gallery[:0], gallery, 2, metric=metric, impl=impl)
        assert values.shape == indices.shape == (0, 2) and indices.dtype == torch.int64


def test_no_gradient_and_no_autocast(impl: str, device: str) -> None:
    queries, gallery = (t.to(device).requires_grad_() for t in rows(20, 100, 16, torch.float32))
    values, indices = knn_topk(queries, gallery, 5, impl=impl)
    assert not values.requires_grad
    with torch.autocast(device, torch.bfloat16):
        again = knn_topk(queries, gallery, 5, impl=impl)
    assert torch.equal(again[0], values) and torch.equal(again[1], indices)


def test_the_same_bits_every_time(impl: str, device: str) -> None:
    queries, gallery = (t.to(device) for t in rows(300, 2000, 40, torch.float32))
    first, second = (knn_topk(queries, gallery, 50, impl=impl) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_compiled_in_one_graph(impl: str, device: str) -> None:
    torch._dynamo.reset()
    queries, gallery = (t.to(device) for t in rows(12, 50, 8, torch.float32))

    def function(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = knn_topk(queries * 2, gallery, 3, impl=impl)
        return values + 1, indices

    found = torch.compile(function, fullgraph=True, backend="aot_eager")(queries, gallery)
    expected = function(queries, gallery)
    torch.testing.assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    torch.library.opcheck(torch.ops.ssl_fast.knn_topk, (queries, gallery, 3, "l2", impl))


def test_transform_of_torch_func() -> None:
    queries, gallery = rows(12, 50, 8)
    found = torch.func.vmap(lambda q: knn_topk(q, gallery, 3)[1])(queries.view(3, 4, 8))
    assert torch.equal(found.flatten(0, 1), knn_topk(queries, gallery, 3)[1])


# Other libraries


def test_agrees_with_faiss(impl: str, device: str) -> None:
    faiss = pytest.importorskip("faiss")
    queries, gallery = rows(50, 3000, 24, torch.float32)
    for metric, index in (("dot", faiss.IndexFlatIP(24)), ("l2", faiss.IndexFlatL2(24))):
        index.add(gallery.numpy())
        values, where = index.search(queries.numpy(), 30)
        found = knn_topk(queries.to(device), gallery.to(device), 30, metric=metric, impl=impl)
        assert (found[1].cpu().numpy() == where).all()
        torch.testing.assert_close(found[0].cpu(), torch.from_numpy(values), rtol=1e-5, atol=1e-4)


def test_agrees_with_scikit_learn(impl: str, device: str) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    queries, gallery = rows(50, 1000, 24)
    index = neighbors.NearestNeighbors(n_neighbors=30, metric="cosine", algorithm="brute").fit(gallery.numpy())
    distance, where = index.kneighbors(queries.numpy())
    values, indices = knn_topk(queries.float().to(device), gallery.float().to(device), 30, impl=impl)
    assert (indices.cpu().numpy() == where).all()
    torch.testing.assert_close(1 - values.cpu().double(), torch.from_numpy(distance), rtol=0, atol=1e-6)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(3), torch.ones(3, 2), 1), {}, r"queries must be floating point of shape \[N, D\].*\[3\]"),
        ((torch.ones(3, 2), torch.ones(3, 2).int(), 1), {}, "gallery must be floating point.*int32"),
        ((torch.ones(3, 2), torch.ones(3, 4), 1), {}, "gallery must have rows of 2 numbers.*got 4"),
        ((torch.ones(3, 2), torch.ones(5, 2), 0), {}, "k must be 1 to 5.*got 0"),
        ((torch.ones(3, 2), torch.ones(5, 2), 6), {}, "k must be 1 to 5.*got 6"),
        ((torch.ones(3, 2), torch.ones(5, 2), 1), {"metric": "hamming"}, "metric must be .* got 'hamming'"),
        ((torch.ones(3, 2), torch.ones(5, 2), 1), {"impl": "fast"}, "impl of knn_topk must be .* got 'fast'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn_topk(*arguments, **options)
