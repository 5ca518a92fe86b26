"""InfoNCE against a queue: every implementation against the equation, and the queue as a ring."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import InfoNCELoss, MoCoQueue, info_nce
from ssl_fast.ops.info_nce import info_nce_reference

OP = "info_nce"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pairs(num_rows: int, dim: int, alignment: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries and keys [N, D] of about this cosine, in float64."""
    generator = torch.Generator().manual_seed(seed)
    first, noise = (F.normalize(torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)) for _ in "qk")
    second = alignment * first + math.sqrt(1 - alignment**2) * noise
    lengths = torch.rand(2, num_rows, 1, generator=generator, dtype=torch.float64) * 1.5 + 0.5
    return (first * lengths[0]).requires_grad_(), (second * lengths[1]).requires_grad_()


def queue_of(size: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Unit rows [K, D]."""
    generator = torch.Generator().manual_seed(size)
    return F.normalize(torch.randn(size, dim, generator=generator)).to(dtype)


def of(impl: str, queue: Tensor, **options: Any) -> Callable[..., Tensor]:
    return lambda q, k: info_nce(q, k, queue.to(q.device), impl=impl, **options)


def reference(queue: Tensor, **options: Any) -> Callable[..., Tensor]:
    return lambda q, k: info_nce_reference(q, k, queue, **options)


# The equation


def test_reference_is_cross_entropy_over_the_concatenated_logits() -> None:
    q, k = (F.normalize(z.detach()) for z in pairs(6, 5))
    queue = queue_of(11, 5, torch.float64)
    logits = torch.cat(((q * k).sum(1, keepdim=True), q @ queue.T), 1) / 0.07
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(info_nce_reference(q, k, queue), expected)
    torch.testing.assert_close(info_nce_reference(q, k, queue, normalize=False), expected)


def test_numbers_worked_by_hand(impl: str, device: str) -> None:
    q, queue = torch.eye(2, 5, device=device), torch.eye(5, device=device)[2:]
    # cosine 1 with the key, 0 with three rows of the queue; lengths play no part
    value = info_nce(2 * q, 9 * q, queue, temperature=0.5, impl=impl)
    assert value.item() == pytest.approx(math.log(math.exp(2) + 3) - 2, rel=1e-6)
    value = info_nce(2 * q, q, queue, temperature=0.5, normalize=False, impl=impl)
    assert value.item() == pytest.approx(math.log(math.exp(4) + 3) - 4, rel=1e-6)


@pytest.mark.parametrize("size", [1, 7, 300])
def test_a_queue_of_the_keys_themselves_gives_log_of_its_size(size: int, impl: str, device: str) -> None:
    row = F.normalize(torch.ones(1, 16, device=device))
    value = info_nce(row, row, row.expand(size, -1), temperature=0.2, impl=impl)
    assert value.item() == pytest.approx(math.log(size + 1), rel=1e-6)


def test_order_of_the_queue_plays_no_part(impl: str, device: str) -> None:
    q, k = (z.detach().float().to(device) for z in pairs(9, 8))
    queue = queue_of(50, 8).to(device)
    value = info_nce(q, k, queue, impl=impl)
    torch.testing.assert_close(info_nce(q, k, queue.flip(0), impl=impl), value)


# Against float64


@pytest.mark.parametrize("queue_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(32, 500, 128), (33, 7, 9), (1, 1, 1), (5, 1030, 64)], ids=str)
def test_value_and_gradients_by_the_rule(  # type: ignore[no-untyped-def]
    shape: tuple[int, int, int], dtype: torch.dtype, queue_dtype: torch.dtype, impl: str, device: str, checker
) -> None:
    num_rows, size, dim = shape
    queue = queue_of(size, dim, queue_dtype)
    for normalize in (True, False):
        for reduction in ("mean", "none"):
            options = {"temperature": 0.2, "reduction": reduction, "normalize": normalize}
            rows = torch.rand(num_rows, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
            upstream = rows if reduction == "none" else torch.tensor(3.0)
            inputs = pairs(num_rows, dim)
            checker.against(of(impl, queue, **options), reference(queue, **options), inputs, dtype, device, upstream)


def without_cancellation(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The truth for aligned pairs: log l - s_positive has no digit left where the loss is 1e-15, even in float64."""
    q, k = F.normalize(q), F.normalize(k)
    negatives = (q @ queue.to(q.dtype).T / temperature).logsumexp(1)
    return F.softplus(negatives - (q * k).sum(1) / temperature, threshold=60).mean()


# What loss and gradients may lose, relative to their size. The loss: two logits of up to 1 / 0.02, each rounded in
# fp32, stand in an exponent: 2 x 50 x 6e-8. Gradients in bf16 and fp16: their own rounding.
SWEEP = {torch.float32: (6e-6, 1e-5), torch.bfloat16: (6e-6, 2e-3), torch.float16: (6e-6, 5e-4)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [0.0, 0.7, 0.9, 0.99])
def test_aligned_pairs(alignment: float, dtype: torch.dtype, impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    queue = queue_of(1000, 128)
    for temperature in (0.02, 0.05, 0.07, 0.1, 0.2, 0.5):
        inputs = tuple(z.detach().to(dtype).requires_grad_() for z in pairs(64, 128, alignment))
        options = {"temperature": temperature}
        truth = lambda q, k, t=temperature: without_cancellation(q, k, queue, t)  # noqa: E731
        ours = of(impl, queue, **options)
        checker.against(ours, reference(queue, **options), inputs, dtype, device, truth=truth)
        # Scaled so that fp16 can hold the gradient, as a loss scale does.
        wanted = checker.run(truth, [z.detach().double().requires_grad_() for z in inputs])
        scale = 100 / torch.cat(wanted[1:]).norm()
        found = checker.run(ours, [z.detach().to(device).requires_grad_() for z in inputs], scale.float())
        assert (found[0] - wanted[0]).abs() <= SWEEP[dtype][0] * wanted[0], f"loss at temperature {temperature}"
        gradients = torch.cat(found[1:]), torch.cat(wanted[1:]) * scale.float()
        assert (gradients[0] - gradients[1]).norm() <= SWEEP[dtype][1] * 100, f"gradient at temperature {temperature}"


def test_weights_and_temperature_have_gradients(impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    weight = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    queue = queue_of(40, 12)
    for reduction in ("mean", "sum", "none"):

        def ours(q: Tensor, k: Tensor, w: Tensor, t: Tensor, reduction: str = reduction) -> Tensor:
            return info_nce(q, k, queue.to(q.device), weight=w, temperature=t, reduction=reduction, impl=impl)

        def theirs(q: Tensor, k: Tensor, w: Tensor, t: Tensor, reduction: str = reduction) -> Tensor:
            return info_nce_reference(q, k, queue, weight=w, temperature=t, reduction=reduction)

        checker.against(ours, theirs, (*pairs(20, 12), weight, temperature), torch.float32, device)


# Differentiation


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize: bool, impl: str) -> None:
    if impl == "triton":
        pytest.skip("the Triton kernels have no float64")
    queue = queue_of(6, 3, torch.float64)
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def function(q: Tensor, k: Tensor, t: Tensor) -> Tensor:
        return info_nce(q, k, queue, temperature=t, normalize=normalize, reduction="none", impl=impl)

    assert torch.autograd.gradcheck(function, (*pairs(4, 3), temperature))
    assert torch.autograd.gradgradcheck(function, (*pairs(4, 3), temperature))


def test_keys_get_a_gradient_only_when_they_ask_and_the_queue_never(impl: str, device: str) -> None:
    q, k = (z.detach().float().to(device) for z in pairs(9, 4))
    queue = queue_of(20, 4, torch.float32).to(device).requires_grad_()
    before = queue.detach().clone()
    q.requires_grad_()
    info_nce(q, k, queue, impl=impl).backward()
    assert q.grad is not None and k.grad is None and queue.grad is None
    assert torch.equal(queue, before) and queue._version == 0
    assert not info_nce(q.detach(), k, queue, impl=impl).requires_grad


def test_upstream_gradient_of_stride_zero_and_twice(impl: str, device: str) -> None:
    q, k = (z.detach().float().to(device).requires_grad_() for z in pairs(9, 4))
    rows = info_nce(q, k, queue_of(20, 4).to(device), reduction="none", impl=impl)
    stretched = torch.ones(1, device=device).expand(9)
    (first,) = torch.autograd.grad(rows, q, stretched, retain_graph=True)
    assert torch.equal(first, torch.autograd.grad(rows, q, torch.ones_like(rows))[0])


def test_transform_of_torch_func() -> None:
    q, k = (z.detach() for z in pairs(5, 3))
    queue = queue_of(7, 3)
    expected = torch.autograd.functional.jacobian(lambda a: info_nce_reference(a, k, queue), q)
    torch.testing.assert_close(torch.func.grad(lambda a: info_nce(a, k, queue))(q), expected)


# Kinds of inputs


def test_not_contiguous(impl: str, device: str) -> None:
    base, queue = torch.randn(7, 2, 10, device=device).requires_grad_(), queue_of(8, 10).to(device)
    q, k, rows = base[:, 0, ::2], base[:, 1, 1::2], queue[::2, ::2]
    dense = (q.detach().clone().requires_grad_(), k.detach().clone().requires_grad_(), rows.clone())
    value, expected = info_nce(q, k, rows, impl=impl), info_nce(*dense, impl=impl)
    value.backward()
    expected.backward()
    assert torch.equal(value, expected) and base.grad is not None
    assert torch.equal(base.grad[:, 0, ::2], dense[0].grad) and torch.equal(base.grad[:, 1, 1::2], dense[1].grad)


def test_no_rows_and_no_negatives(impl: str, device: str) -> None:
    q = torch.zeros(0, 4, device=device, requires_grad=True)
    value = info_nce(q, q.detach(), queue_of(5, 4).to(device), impl=impl)
    value.backward()
    assert value == 0 and q.grad is not None and q.grad.shape == (0, 4)
    q, k = (z.detach().float().to(device).requires_grad_() for z in pairs(3, 4))
    value = info_nce(q, k, torch.zeros(0, 4, device=device), impl=impl)
    value.backward()
    assert value == 0 and q.grad is not None and not q.grad.any()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_rows_of_no_numbers_are_all_alike(reduction: str, impl: str, device: str) -> None:
    q, queue = torch.zeros(3, 0, device=device, requires_grad=True), torch.zeros(4, 0, device=device)
    temperature = torch.tensor(0.5, device=device, requires_grad=True)
    value = info_nce(q, q.detach(), queue, temperature=temperature, reduction=reduction, impl=impl)
    torch.testing.assert_close(value, torch.full_like(value, math.log(5)))
    dq, dtemperature = torch.autograd.grad(value.sum(), (q, temperature))
    assert dq.shape == (3, 0) and dtemperature.item() == 0


def test_zero_rows_stay_finite(impl: str, device: str) -> None:
    q, k = (z.detach().float().to(device) for z in pairs(6, 4))
    q[2], k[3] = 0, 0
    q.requires_grad_(), k.requires_grad_()
    info_nce(q, k, queue_of(9, 4).to(device), impl=impl).backward()
    assert q.grad is not None and k.grad is not None and bool(q.grad.isfinite().all() and k.grad.isfinite().all())


def test_autocast_changes_nothing(impl: str, device: str) -> None:
    q, k = (z.detach().float().to(device) for z in pairs(16, 8))
    queue = queue_of(30, 8).to(device)
    with torch.autocast(device, torch.bfloat16):
        value = info_nce(q, k, queue, impl=impl)
    assert value.dtype == torch.float32 and torch.equal(value, info_nce(q, k, queue, impl=impl))
    assert info_nce(q.bfloat16(), k, queue, impl=impl).dtype == torch.float32


def test_the_same_bits_every_time(impl: str, device: str) -> None:
    q, k = (z.detach().float().to(device).requires_grad_() for z in pairs(65, 40))
    queue, runs = queue_of(3000, 40).to(device), []
    for _ in range(3):
        value = info_nce(q, k, queue, impl=impl)
        runs.append((value.detach(), *torch.autograd.grad(value, (q, k))))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_compiled_in_one_graph(backend: str, impl: str, device: str) -> None:
    torch._dynamo.reset()
    q, k = (z.detach().float().to(device).requires_grad_() for z in pairs(12, 8))
    queue, temperature = queue_of(30, 8).to(device), torch.tensor(0.3, device=device).requires_grad_()

    def function(q: Tensor, k: Tensor, t: Tensor) -> Tensor:
        return info_nce(q * 2, k, queue, temperature=t, impl=impl).square()

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    value, expected = compiled(q, k, temperature), function(q, k, temperature)
    torch.testing.assert_close(value, expected)
    inputs = (q, k, temperature)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


def test_the_registered_op_keeps_torchs_rules(impl: str, device: str) -> None:
    q, k = (z.detach().float().to(device).requires_grad_() for z in pairs(6, 4))
    for t in (None, torch.tensor(0.3, device=device, requires_grad=True)):
        inputs = (q, k, t, queue_of(9, 4).to(device), 5.0, True, impl, True)
        torch.library.opcheck(torch.ops.ssl_fast.info_nce, inputs)


# Arguments


def test_module_is_the_function(impl: str, device: str) -> None:
    q, k = (z.detach().float().to(device) for z in pairs(6, 4))
    queue, weight = queue_of(9, 4).to(device), torch.rand(6, device=device)
    module = InfoNCELoss(temperature=0.3, reduction="sum", impl=impl)
    expected = info_nce(q, k, queue, temperature=0.3, reduction="sum", weight=weight, impl=impl)
    assert torch.equal(module(q, k, queue, weight=weight), expected)
    assert "reduction='sum'" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(3), torch.ones(3), torch.ones(4, 2)), {}, r"q must be floating point of shape \[N, D\].*\[3\]"),
        ((torch.ones(3, 2), torch.ones(4, 2), torch.ones(4, 2)), {}, r"k must have the shape.*of q.*got \[4, 2\]"),
        ((torch.ones(3, 2), torch.ones(3, 2), torch.ones(2, 4)), {}, "queue must have rows of 2 numbers.*got 4"),
        ((torch.ones(3, 2),) * 3, {"temperature": -1}, "temperature must be positive, got -1"),
        ((torch.ones(3, 2),) * 3, {"weight": torch.ones(3).int()}, "weight must be floating point.*int32"),
        ((torch.ones(3, 2),) * 3, {"reduction": "avg"}, "reduction must be .* got 'avg'"),
        ((torch.ones(3, 2),) * 3, {"impl": "fast"}, "impl of info_nce must be .* got 'fast'"),
        ((torch.ones(3, 2),) * 3, {"grad_reduce": "max"}, "grad_reduce must be 'mean'.*got 'max'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Tensor, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        info_nce(*arguments, **options)


# The queue


@pytest.mark.parametrize("batches", [[3, 3], [4, 7, 1], [10], [10, 10], [23], [2, 25, 3], [0, 4, 0]], ids=str)
@pytest.mark.parametrize("size", [1, 10])
def test_queue_is_a_ring_of_the_last_keys(size: int, batches: list[int]) -> None:
    queue = MoCoQueue(size, 3, dtype=torch.float32)
    ring, place = queue.rows.clone(), 0
    for count in batches:
        keys = torch.randn(count, 3)
        queue.enqueue_(keys)
        for key in keys:
            ring[place] = key / key.norm()
            place = (place + 1) % size
    torch.testing.assert_close(queue.rows, ring)
    assert queue.pointer == place and queue.pointer.shape == () and queue.pointer.dtype == torch.int64


def test_queue_starts_with_unit_vectors_of_the_generator() -> None:
    first, again = (MoCoQueue(50, 8, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.rows, again.rows) and first.rows.dtype == torch.bfloat16
    torch.testing.assert_close(first.rows.float().norm(dim=1), torch.ones(50), atol=4e-3, rtol=0)
    assert not torch.equal(first.rows, MoCoQueue(50, 8, generator=torch.Generator().manual_seed(4)).rows)


def test_queue_is_saved_exactly() -> None:
    queue, copy = MoCoQueue(10, 4), MoCoQueue(10, 4)
    queue.enqueue_(torch.randn(7, 4))
    copy.load_state_dict(queue.state_dict())
    assert torch.equal(copy.rows, queue.rows) and copy.pointer == 7
    keys = torch.randn(5, 4)
    queue.enqueue_(keys), copy.enqueue_(keys)
    assert torch.equal(copy.rows, queue.rows) and copy.pointer == queue.pointer == 2
    assert set(queue.state_dict()) == {"rows", "pointer"} and "size=10, dim=4" in repr(queue)


def test_keys_need_no_unit_length_and_carry_no_graph() -> None:
    queue, keys = MoCoQueue(4, 3, dtype=torch.float32), torch.randn(2, 3).requires_grad_()
    queue.enqueue_(keys * 100)
    assert not queue.rows.requires_grad
    torch.testing.assert_close(queue.rows[:2], F.normalize(keys.detach()))
    queue.enqueue_(torch.zeros(1, 3))
    assert queue.rows.isfinite().all()


def test_enqueue_before_the_backward_pass_is_refused(impl: str, device: str) -> None:
    queue = MoCoQueue(10, 4).to(device)
    q, k = (z.detach().float().to(device).requires_grad_() for z in pairs(3, 4))
    loss = info_nce(q, k, queue.rows, impl=impl)
    queue.enqueue_(k)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = info_nce(q, k, queue(), impl=impl)
    loss.backward()
    queue.enqueue_(k)


def test_wrong_queues_are_named() -> None:
    with pytest.raises(ValueError, match="size and dim must be positive, got size=0"):
        MoCoQueue(0, 4)
    with pytest.raises(ValueError, match=r"keys must have shape \[N, 4\], got \[3, 5\]"):
        MoCoQueue(10, 4).enqueue_(torch.ones(3, 5))
