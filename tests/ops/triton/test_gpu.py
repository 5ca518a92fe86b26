"""The compiled kernels on a real GPU: error against float64, bit-equal repeats, CUDA graphs, no synchronisation."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import arcface, byol_loss, knn_topk, sinkhorn
from ssl_fast.ops.dispatch import OPS
from ssl_fast.ops.knn_topk import knn_topk_reference
from ssl_fast.ops.triton import info_nce, nt_xent, tiles
from tests.ops.conftest import Checker
from tests.ops.margin_cases import samples
from tests.ops.triton import literal
from tests.ops.triton.cases import CASES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(tiles.interpreted(), reason="TRITON_INTERPRET=1: nothing is compiled in this process"),
]


@pytest.fixture(autouse=True)
def _skip_unavailable(request: pytest.FixtureRequest) -> None:
    """Skips, with the reason, a dtype that the kernels do not take on this GPU."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    rows = torch.empty(2, 8, dtype=parameters.get("dtype", torch.float32), device="cuda")
    reason = tiles.unavailable(rows)
    if reason:
        pytest.skip(reason)


LUCK = 4  # roundings: the reference's own error is a random number (tests/ops/conftest.py)
_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_op_by_the_rule(name: str, dtype: torch.dtype) -> None:
    """As it is called; the same cases, smaller, run in interpreted/test_cases.py."""
    case = CASES[name](True)
    case.check(Checker(), dtype, "cuda", "triton" if "triton" in OPS[case.op] else "auto")


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("shape", [(300, 5000), (1000, 70_001), (5, 3)])
def test_sinkhorn_against_float64(shape: tuple[int, int], dtype: torch.dtype) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
    exact = sinkhorn(logits.double(), impl="reference")
    # A logit is divided by 0.05: its rounding is that of a number 20 times as large.
    roundings = 20 * float(logits.abs().max())
    reference = sinkhorn(logits, impl="reference")
    literal.check_rule(sinkhorn(logits, impl="triton"), exact, reference, "assignments", roundings)


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("k", [1, 20, 200])
def test_knn_topk_finds_the_neighbours_of_float64(k: int, metric: str) -> None:
    gallery, queries = (torch.randn(n, 64, generator=torch.Generator().manual_seed(n)).cuda() for n in (70_001, 600))
    values, indices = knn_topk(queries, gallery, k, metric=metric)
    exact, order = knn_topk_reference(queries.double(), gallery.double(), k, metric=metric)
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-4)
    assert (indices == order).double().mean() > 0.99  # equal but for their rounding


def _run(x: Tensor, positive: Tensor, coef: Tensor, inv: float | Tensor, normalize: bool = True) -> dict[str, Tensor]:
    loss, log_l = nt_xent.forward(x, positive, (0, len(x)), inv, normalize)
    dx, _ = nt_xent.backward(x, positive, coef, log_l, (0, len(x)), inv, normalize)
    return {"loss": loss, "log_l": log_l, "dx": dx}


def _check(ours: dict[str, Tensor], exact: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    for name, value in ours.items():
        literal.check_rule(value, exact[name], reference[name], name, LUCK)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize(
    ("pairs", "dim"), [(2048, 128), (4096, 64), (513, 17), (300, 200), (257, 300), (640, 256), (130, 1024), (1, 8)]
)
@pytest.mark.parametrize("inv_temperature", [10.0, 20.0, 90.0])
def test_nt_xent_matches_formula(dtype: torch.dtype, pairs: int, dim: int, inv_temperature: float) -> None:
    x, positive, coef = literal.views(pairs, dim, 0.7, dtype, "cuda")
    exact = literal.nt_xent(x.double(), positive, coef, inv_temperature, True)
    _check(_run(x, positive, coef, inv_temperature), exact, literal.nt_xent(x, positive, coef, inv_temperature, True))


@pytest.mark.parametrize("aligned", [0.0, 0.7, 0.9])
@pytest.mark.parametrize("temperature", [0.05, 0.1])
def test_nt_xent_aligned_views(aligned: float, temperature: float) -> None:
    for dtype, bound in ((torch.bfloat16, 6e-3), (torch.float16, 1e-4), (torch.float32, 5e-6)):
        x, positive, coef = literal.views(1024, 128, aligned, dtype, "cuda")
        exact = literal.nt_xent(x.double(), positive, coef, 1 / temperature, True)["dx"]
        dx = _run(x, positive, coef, 1 / temperature)["dx"]
        assert (dx.double() - exact).norm() / exact.norm() < bound, dtype


def test_nt_xent_some_rows_and_device_temperature() -> None:
    x, positive, coef = literal.views(1000, 96, 0.7, torch.float32, "cuda")
    inv, rows = torch.tensor(10.0, device="cuda"), (333, 1801)
    whole = _run(x, positive, coef, 10.0)
    loss, log_l = nt_xent.forward(x, positive, rows, inv, True)
    dx, _ = nt_xent.backward(x, positive, coef, whole["log_l"], rows, inv, True)
    for ours, name in ((loss, "loss"), (log_l, "log_l"), (dx, "dx")):
        torch.testing.assert_close(ours, whole[name][slice(*rows)], rtol=1e-4, atol=1e-6)


def test_nt_xent_slabs_of_several_tiles() -> None:
    x, positive, _ = literal.views(8192, 32, 0.7, torch.float32, "cuda")
    whole = nt_xent.forward(x, positive, (0, len(x)), 10.0, True)[0]
    rows = nt_xent.forward(x, positive, (0, len(x) - 1), 10.0, True)[0]
    torch.testing.assert_close(whole[:-1], rows, rtol=1e-5, atol=1e-6)


def _queue(batch: int, length: int, dim: int, dtype: torch.dtype, queue_dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, _, _ = literal.views(batch, dim, 0.7, dtype, "cuda")
    queue = F.normalize(torch.randn(length, dim, generator=torch.Generator().manual_seed(1)), dim=1)
    return x[:batch], x[batch:], queue.to("cuda", queue_dtype)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("queue_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("batch", "length", "dim"), [(256, 65536, 128), (1, 1000, 17), (300, 4099, 200), (65, 999, 300)]
)
@pytest.mark.parametrize("inv_temperature", [1 / 0.07, 90.0])
def test_info_nce_matches_formula(
    dtype: torch.dtype, queue_dtype: torch.dtype, batch: int, length: int, dim: int, inv_temperature: float
) -> None:
    q, k, queue = _queue(batch, length, dim, dtype, queue_dtype)
    values = info_nce.forward(q, k, queue, inv_temperature, True, True)
    exact = literal.info_nce(q.double(), k.double(), queue.double(), inv_temperature, True)
    reference = literal.info_nce(q, k, queue, inv_temperature, True)
    _check(dict(zip(("loss", "dq", "dk", "dinv"), values, strict=True)), exact, reference)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_repeats_are_bit_equal(dtype: torch.dtype) -> None:
    x, positive, coef = literal.views(5000, 128, 0.7, dtype, "cuda")
    q, k, queue = _queue(200, 30000, 128, dtype, torch.bfloat16)
    for inv in (10.0, 60.0):
        first, queue_first = _run(x, positive, coef, inv), info_nce.forward(q, k, queue, inv, True, True)
        for _ in range(5):
            again = _run(x, positive, coef, inv)
            assert all(torch.equal(again[name], value) for name, value in first.items())
            assert all(map(torch.equal, queue_first, info_nce.forward(q, k, queue, inv, True, True)))


def test_cuda_graph() -> None:
    x, positive, coef = literal.views(1024, 128, 0.7, torch.bfloat16, "cuda")
    q, k, queue = _queue(64, 4096, 128, torch.bfloat16, torch.bfloat16)

    def step() -> tuple[Tensor, ...]:
        queued = info_nce.forward(q, k, queue, 10.0, True, True)
        return (*_run(x, positive, coef, 10.0).values(), *queued)

    step()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(x.flip(0))
    q.copy_(q.flip(0))
    graph.replay()
    assert all(map(torch.equal, captured, step()))


def _margin_rows() -> tuple[Tensor, Tensor, Tensor]:
    x, weight, labels = (t.detach().cuda() for t in samples(300, 33_000, 64))
    return x.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_(), labels


def _new_kernels(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    value = arcface(x, weight, labels, impl="triton") + byol_loss(x, x.detach().flip(0), impl="triton")
    return value.detach(), *torch.autograd.grad(value, (x, weight)), sinkhorn(x @ weight[:3000].T, impl="triton")


def test_margin_byol_and_sinkhorn_repeat_bit_for_bit_and_never_wait() -> None:
    inputs = _margin_rows()
    first = _new_kernels(*inputs)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = [_new_kernels(*inputs) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for run in again for a, b in zip(first, run, strict=True))


def test_margin_softmax_keeps_to_its_memory() -> None:
    """Panels of 32 MiB: no logits [N, C], which would be 256 MiB here and several times that for autograd."""
    x, weight, labels = torch.randn(512, 64).cuda(), torch.randn(131_072, 64).cuda(), torch.arange(512).cuda()
    leaves = x.requires_grad_(), weight.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(arcface(*leaves, labels, impl="triton"), leaves)
    gradient = weight.numel() * 4
    assert torch.cuda.max_memory_allocated() - before < 3 * gradient + (5 * 32 << 20)
