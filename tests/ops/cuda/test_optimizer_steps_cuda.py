"""The CUDA kernels of SAM, LAMB, Lookahead and gradients: what they compute on a GPU."""

import pytest
import torch
from torch import Tensor

from ssl_fast.ops.gradients import centralize_gradients_, clip_grad_norm_, global_norm
from ssl_fast.ops.lamb import lamb_step_
from ssl_fast.ops.multi_tensor import lookahead_update_
from ssl_fast.ops.sam import sam_adamw_step_, sam_ascend_, sam_sgd_step_
from ssl_fast.optim import LAMB, SAM

DEVICE = "cuda"  # test_on_host.py runs some of these tests on a CPU
SHAPES = [(), (7,), (40_000,), (0,), (33, 65), (64, 32, 3, 3), (70, 513)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def draw(dtype: torch.dtype, seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(s, generator=generator, dtype=torch.float64) * scale).to(DEVICE, dtype) for s in SHAPES]


def wide(tensors: list[Tensor]) -> list[Tensor]:
    """Copies in float64."""
    return [t.to(torch.float64, copy=True) for t in tensors]


def assert_close(results: list[Tensor], exact: list[Tensor]) -> None:
    for x, y in zip(results, exact, strict=True):
        bound = 32 * torch.finfo(x.dtype).eps
        torch.testing.assert_close(x.double(), y.double(), rtol=bound, atol=bound)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_op_equals_the_float64_reference(dtype: torch.dtype) -> None:
    results: dict[str, list[list[Tensor]]] = {}
    for impl in ("cuda", "reference"):
        p, g, s, q = (draw(dtype, seed) for seed in (1, 2, 3, 4))
        m = [x.to(torch.promote_types(dtype, torch.float32)) for x in draw(dtype, 5)]
        v = [x.square() for x in m]
        if impl == "reference":
            p, g, s, q, m, v = (wide(tensors) for tensors in (p, g, s, q, m, v))
        found = [global_norm(g, impl=impl), global_norm(g, p, impl=impl)]
        sam_ascend_(q, g, s, norm=found[0], rho=0.5, impl=impl)
        sam_ascend_(q, g, s, norm=found[1], rho=0.5, adaptive=True, impl=impl)
        lamb_step_(p, g, m, v, step=3, lr=0.1, impl=impl)
        a, b = [x.clone() for x in q], [x.clone() for x in s]
        lookahead_update_(a, b, 0.3, impl=impl)
        c, e, h = ([x.clone() for x in q] for _ in range(3))
        sam_sgd_step_(c, s, g, e, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, impl=impl)
        sam_sgd_step_(h, s, g, [], lr=0.1, impl=impl)
        d = [x.clone() for x in q]
        zeros = [[torch.zeros_like(x) for x in s] for _ in "mv"]
        sam_adamw_step_(d, s, g, *zeros, step=1, lr=0.1, impl=impl)
        centralize_gradients_(g, impl=impl)
        results[impl] = [p, q, s, m, v, a, b, c, e, h, d, g, found]
    for x, y in zip(results["cuda"], results["reference"], strict=True):
        assert_close([t.to(dtype) if t.dim() == 0 else t for t in x], [t.to(dtype) if t.dim() == 0 else t for t in y])


@pytest.mark.gpu
def test_clipping_two_runs_and_the_number_of_launches() -> None:
    results = []
    for _ in range(2):
        params = [torch.nn.Parameter(torch.zeros(3, 5, device=DEVICE)) for _ in range(2100)]
        for i, p in enumerate(params):
            p.grad = torch.full_like(p, 1.0 + i % 3)
        expected = torch.stack([p.grad.double().norm() for p in params]).norm()
        norm = clip_grad_norm_(params, 1.0, impl="cuda")
        torch.testing.assert_close(norm.double(), expected, rtol=1e-6, atol=0)
        results.append([norm, *(p.grad for p in params)])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))
    torch.testing.assert_close(torch.stack([g.norm() for g in results[0][1:]]).norm().item(), 1.0, rtol=1e-5, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sam", "lamb"])
def test_a_captured_step_replays_with_new_gradients(name: str) -> None:
    params = [torch.nn.Parameter(p) for p in draw(torch.float32, 1) if p.numel()]
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    noise = [torch.zeros_like(p) for p in params]

    def make(own: list[torch.nn.Parameter]) -> tuple[torch.optim.Optimizer, object]:
        for p in own:
            p.grad = torch.zeros_like(p)

        def closure() -> float:
            for p, n in zip(own, noise, strict=True):
                p.grad.copy_(p + n)
            return 0.0

        if name == "lamb":
            return LAMB(own, lr=0.01, impl="cuda"), closure
        return SAM(own, torch.optim.SGD, lr=0.1, momentum=0.9, replay_random=False, impl="cuda"), closure

    (optimizer, closure), (eager, eager_closure) = make(params), make(twins)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.step(closure)
    torch.cuda.current_stream().wait_stream(stream)
    eager.step(eager_closure)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step(closure)
    for _ in range(2):
        for n in noise:
            n.normal_()
        graph.replay()
        eager.step(eager_closure)
        assert all(p.equal(t) for p, t in zip(params, twins, strict=True))


@pytest.mark.gpu
def test_nothing_waits_for_the_host() -> None:
    params = [torch.nn.Parameter(p) for p in draw(torch.float32, 1)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizers = [SAM(params, torch.optim.SGD, lr=0.1, momentum=0.9), LAMB(params, lr=0.01)]
    for optimizer in optimizers:
        optimizer.step(lambda: 0.0)  # state and kernels are made
    torch.cuda.set_sync_debug_mode("error")
    try:
        clip_grad_norm_(params, 1.0, impl="cuda")
        centralize_gradients_([p.grad for p in params], impl="cuda")
        for optimizer in optimizers:
            optimizer.step(lambda: 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.isfinite().all() for p in params)
