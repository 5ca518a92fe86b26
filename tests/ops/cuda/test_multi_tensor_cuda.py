"""The CUDA kernels of LARS and EMA: what they compute on a GPU."""

import pytest
import torch
from torch import Tensor

from ssl_fast.ops.multi_tensor import ema_update_, lars_step_
from ssl_fast.optim import LARS

SETTINGS = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.1}
DEVICE = "cuda"  # test_on_host.py runs some of these tests on a CPU
SHAPES = [(), (7,), (40_000,), (0,), (33, 65), (64, 32, 3, 3), (70, 513)]


def draw(dtype: torch.dtype, seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(s, generator=generator, dtype=torch.float64) * scale).to(DEVICE, dtype) for s in SHAPES]


def wide(t: Tensor) -> Tensor:
    """A float64 copy."""
    return t.to(torch.float64, copy=True)


def assert_close(results: list[Tensor], exact: list[Tensor], times: float = 8.0) -> None:
    for x, y in zip(results, exact, strict=True):
        torch.testing.assert_close(x.double(), y.double(), rtol=0, atol=times * torch.finfo(x.dtype).eps * 4)


@pytest.mark.gpu
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lars_equals_the_float64_reference(dtype: torch.dtype, nesterov: bool) -> None:
    params, grads = draw(dtype, 1), draw(dtype, 2, scale=0.05)
    buffers = [v.to(torch.promote_types(dtype, torch.float32)) for v in draw(torch.float64, 3)]
    exact = [[wide(t) for t in tensors] for tensors in (params, grads, buffers)]
    lars_step_(*exact, **SETTINGS, nesterov=nesterov, impl="reference")
    lars_step_(params, grads, buffers, **SETTINGS, nesterov=nesterov, impl="cuda")
    assert_close(params, exact[0])
    assert_close(buffers, exact[2])


@pytest.mark.gpu
@pytest.mark.parametrize("source_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("target_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ema_equals_the_float64_reference(target_dtype: torch.dtype, source_dtype: torch.dtype) -> None:
    targets, sources = draw(target_dtype, 1), draw(source_dtype, 2)
    exact = [wide(t) for t in targets]
    ema_update_(exact, [s.double() for s in sources], 0.99, impl="reference")
    ema_update_(targets, sources, 0.99, impl="cuda")
    assert_close(targets, exact)


@pytest.mark.gpu
def test_layouts_and_unaligned_gradients() -> None:
    p = torch.randn(64, 32, 3, 3, device=DEVICE).contiguous(memory_format=torch.channels_last)
    bucket = torch.randn(p.numel() + 1, device=DEVICE)
    for g in (torch.randn_like(p), torch.randn(p.shape, device=DEVICE), bucket[1:].view(p.shape)):
        q, v = p.clone(), torch.zeros_like(p)
        exact = [wide(t) for t in (q, g, v)]
        lars_step_(*([t] for t in exact), **SETTINGS, impl="reference")
        lars_step_([q], [g], [v], **SETTINGS, impl="cuda")
        assert_close([q, v], [exact[0], exact[2]])


@pytest.mark.gpu
def test_more_tensors_than_one_launch_holds() -> None:
    check_a_step([torch.randn(3, 5, device=DEVICE) for _ in range(2100)])


@pytest.mark.gpu
def test_a_tensor_so_large_that_its_chunks_are_longer() -> None:
    check_a_step([torch.randn(1, 140_000_001, device=DEVICE, dtype=torch.bfloat16)])


def check_a_step(params: list[Tensor]) -> None:
    """LARS in fp32."""
    grads = [torch.randn_like(p) for p in params]
    buffers = [torch.zeros_like(p, dtype=torch.float32) for p in params]
    exact = [[t.to(torch.float32, copy=True) for t in tensors] for tensors in (params, grads, buffers)]
    lars_step_(*exact, **SETTINGS, impl="reference")
    lars_step_(params, grads, buffers, **SETTINGS, impl="cuda")
    for p, p_exact in zip(params, exact[0], strict=True):
        atol = 1e-4 if p.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(p.float(), p_exact, rtol=1e-4, atol=atol)


@pytest.mark.gpu
def test_two_runs_give_the_same_bits() -> None:
    results = []
    for _ in range(2):
        params, grads = draw(torch.float32, 1), draw(torch.float32, 2)
        buffers = [torch.zeros_like(p) for p in params]
        for _ in range(3):
            lars_step_(params, grads, buffers, **SETTINGS, impl="cuda")
            ema_update_(buffers, params, 0.9, impl="cuda")
        results.append([*params, *buffers])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


@pytest.mark.gpu
def test_a_captured_step_replays_with_new_gradients_and_a_new_rate() -> None:
    params = [torch.nn.Parameter(p) for p in draw(torch.float32, 1) if p.numel()]
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    for p, t in zip(params, twins, strict=True):
        p.grad, t.grad = torch.ones_like(p), torch.ones_like(t)
    lr = torch.tensor(0.1, device=DEVICE)
    optimizer, eager = LARS(params, lr=lr, impl="cuda"), LARS(twins, lr=0.1, impl="cuda")
    optimizer.step()
    eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for rate in (0.1, 0.05):
        lr.fill_(rate)
        eager.param_groups[0]["lr"] = float(lr)
        for p, t in zip(params, twins, strict=True):
            p.grad.copy_(torch.randn_like(p))
            t.grad.copy_(p.grad)
        graph.replay()
        eager.step()
        assert all(p.equal(t) for p, t in zip(params, twins, strict=True))


@pytest.mark.gpu
def test_nothing_waits_for_the_host() -> None:
    params, grads = draw(torch.float32, 1), draw(torch.float32, 2)
    buffers = [torch.zeros_like(p) for p in params]
    torch.cuda.set_sync_debug_mode("error")
    try:
        lars_step_(params, grads, buffers, **SETTINGS, impl="cuda")
        ema_update_(params, grads, 0.9, impl="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.isfinite().all() for p in params)


@pytest.mark.gpu
def test_it_runs_on_the_current_stream() -> None:
    stream = torch.cuda.Stream()
    target, source = torch.zeros(50_000_000, device=DEVICE), torch.empty(50_000_000, device=DEVICE)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        source.fill_(1.0)
        ema_update_([target], [source], 0.5, impl="cuda")
    stream.synchronize()
    assert target.min().item() == target.max().item() == 0.5
