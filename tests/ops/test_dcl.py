"""DCL: every implementation against the equation, and the equation against the paper's sums."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_fast import DCLLoss, dcl
from ssl_fast.ops.dcl import dcl_reference
from tests.ops.test_nt_xent import views

OP = "dcl"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIGMAS = [None, 0.5]


def of(impl: str, **options: Any) -> Callable[..., Tensor]:
    return lambda z1, z2: dcl(z1, z2, impl=impl, **options)


def reference(**options: Any) -> Callable[..., Tensor]:
    return lambda z1, z2: dcl_reference(z1, z2, **options)


def paper(z1: Tensor, z2: Tensor, temperature: float, sigma: float | None) -> float:
    """L_DC (L_DCW with sigma) averaged over i and k, by loops."""
    z = [[[v / math.hypot(*row) for v in row] for row in view.tolist()] for view in (z1, z2)]

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    samples = range(len(z1))
    pulls = [cosine(z[0][i], z[1][i]) for i in samples]
    mean = sum(math.exp(p / sigma) for p in pulls) / len(pulls) if sigma else 1.0
    total = 0.0
    for i in samples:
        w = 2 - math.exp(pulls[i] / sigma) / mean if sigma else 1.0
        for k in range(2):
            pushes = [math.exp(cosine(z[k][i], z[m][j]) / temperature) for m in range(2) for j in samples if j != i]
            total += -w * pulls[i] / temperature + math.log(sum(pushes))
    return total / (2 * len(z1))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_loop_of_the_paper(sigma: float | None, impl: str, device: str) -> None:
    z1, z2 = views(6, 5)
    expected = paper(z1, z2, 0.2, sigma)
    assert dcl_reference(z1, z2, 0.2, sigma).item() == pytest.approx(expected, rel=1e-12)
    found = dcl(z1.float().to(device), z2.float().to(device), temperature=0.2, sigma=sigma, impl=impl)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_numbers_worked_by_hand(impl: str, device: str) -> None:
    eye = torch.eye(4, device=device)
    for sigma in SIGMAS:  # equal pairs weigh the same
        value = dcl(eye, 3 * eye, temperature=1.0, sigma=sigma, impl=impl)
        assert value.item() == pytest.approx(math.log(6) - 1, rel=1e-6)


@pytest.mark.parametrize("num_rows", [2, 5, 129])
def test_identical_embeddings_give_log_of_the_negatives(num_rows: int, impl: str, device: str) -> None:
    same = torch.ones(num_rows, 16, device=device)
    assert dcl(same, same, impl=impl).item() == pytest.approx(math.log(2 * num_rows - 2), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (33, 7), (2, 1), (130, 65)], ids=str)
def test_value_and_gradients_by_the_rule(
    shape: tuple[int, int], dtype: torch.dtype, impl: str, device: str, checker
) -> None:  # type: ignore[no-untyped-def]
    for reduction in ("mean", "none"):
        options = {"temperature": 0.2, "reduction": reduction}
        upstream = torch.rand(2, shape[0], generator=torch.Generator().manual_seed(2)) + 0.5
        upstream = upstream if reduction == "none" else torch.tensor(3.0)
        checker.against(of(impl, **options), reference(**options), views(*shape), dtype, device, upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [0.0, 0.9, 0.99])
def test_aligned_views(alignment: float, dtype: torch.dtype, impl: str, device: str) -> None:
    """The loss is a difference and may be near 0: its error is measured by its terms, of up to 1 / temperature."""
    worst = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}[dtype]
    for temperature in (0.02, 0.1, 0.5):
        for sigma in SIGMAS:
            low = [z.detach().to(device, dtype).requires_grad_() for z in views(100, 64, alignment)]
            exact = [z.detach().cpu().double().requires_grad_() for z in low]
            value = dcl(*low, temperature=temperature, sigma=sigma, impl=impl)
            truth = dcl_reference(*exact, temperature, sigma)
            assert (value.cpu() - truth).abs() <= 4e-7 * (6 + 1 / temperature)
            (value * 64).backward()
            (truth * 64).backward()
            for found, wanted in zip(low, exact, strict=True):
                assert found.grad is not None and wanted.grad is not None
                error = (found.grad.cpu().double() - wanted.grad).norm() / wanted.grad.norm()
                assert error <= worst * (1 + 0.1 / temperature), f"temperature {temperature}, sigma {sigma}"


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_and_temperature_have_gradients(reduction: str, impl: str, device: str) -> None:
    weight = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = [t.detach().requires_grad_() for t in (*views(20, 12), weight, torch.tensor(0.3, dtype=torch.float64))]
    low = [t.detach().float().to(device).requires_grad_() for t in exact]
    options: dict[str, Any] = {"sigma": 0.4, "reduction": reduction}
    found = dcl(low[0], low[1], weight=low[2], temperature=low[3], impl=impl, **options)
    wanted = dcl_reference(exact[0], exact[1], exact[3], weight=exact[2], **options)
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=2e-6, atol=4e-6)
    pairs = zip(torch.autograd.grad(found.sum(), low), torch.autograd.grad(wanted.sum(), exact), strict=True)
    for ours, truth in pairs:
        torch.testing.assert_close(ours.cpu().double(), truth, rtol=1e-5, atol=1e-6 * truth.abs().max().item())


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize: bool, reduction: str, impl: str) -> None:
    if impl == "triton":
        pytest.skip("the Triton kernels have no float64")
    weight = torch.rand(4, dtype=torch.float64).requires_grad_()
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def function(z1: Tensor, z2: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return dcl(z1, z2, weight=w, temperature=t, normalize=normalize, reduction=reduction, impl=impl)

    assert torch.autograd.gradcheck(function, (*views(4, 3), weight, temperature))
    assert torch.autograd.gradgradcheck(function, (*views(4, 3), weight, temperature))


def test_upstream_gradient_of_stride_zero(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device).requires_grad_() for z in views(9, 4))
    losses = dcl(z1, z2, sigma=0.5, reduction="none", impl=impl)
    (stretched,) = torch.autograd.grad(losses, z1, torch.ones(1, 1, device=device).expand_as(losses))
    value = dcl(z1, z2, sigma=0.5, reduction="sum", impl=impl)
    torch.testing.assert_close(stretched, torch.autograd.grad(value, z1)[0])


def test_transforms_of_torch_func() -> None:
    z1, z2 = (z.detach() for z in views(5, 3))
    for sigma in SIGMAS:
        expected = torch.autograd.functional.jacobian(lambda a, s=sigma: dcl_reference(a, z2, 0.1, s), z1)
        found = torch.func.grad(lambda a, s=sigma: dcl(a, z2, sigma=s))(z1)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_in_one_graph(reduction: str, impl: str, device: str) -> None:
    torch._dynamo.reset()
    z1, z2 = (z.detach().to(device, torch.float32).requires_grad_() for z in views(12, 8))
    temperature = torch.tensor(0.3, device=device).requires_grad_()
    inputs = (z1, z2, temperature)

    def function(z1: Tensor, z2: Tensor, t: Tensor) -> Tensor:
        return dcl(z1 * 2, z2, temperature=t, sigma=0.5, reduction=reduction, impl=impl).square().sum()

    value, expected = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs), function(*inputs)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


def test_the_registered_op_keeps_torchs_rules(impl: str, device: str) -> None:
    x = torch.cat(views(6, 4)).detach().float().to(device).requires_grad_()
    kind = ("dcl", 2, -1, impl)
    torch.library.opcheck(
        torch.ops.ssl_fast.self_contrast, (x, None, None, None, None, 5.0, True, True, "", 1, *kind, True)
    )
    torch.library.opcheck(torch.ops.ssl_fast.self_contrast_rows, (x, None, None, 5.0, True, "", *kind))


@pytest.mark.parametrize("num_rows", [0, 1])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_no_negatives(sigma: float | None, num_rows: int, impl: str, device: str) -> None:
    for reduction in ("mean", "sum", "none"):
        z1, z2 = (torch.randn(num_rows, 4, device=device).requires_grad_() for _ in range(2))
        value = dcl(z1, z2, sigma=sigma, reduction=reduction, impl=impl)
        assert value.shape == ((2, num_rows) if reduction == "none" else ()) and not value.any()
        value.sum().backward()
        assert z1.grad is not None and z1.grad.shape == (num_rows, 4) and not z1.grad.any()


def test_not_contiguous_and_zero_rows(impl: str, device: str) -> None:
    base = torch.randn(7, 2, 10, device=device)
    base[3] = 0
    base.requires_grad_()
    z1, z2 = base[:, 0, ::2], base[:, 1, 1::2]
    assert torch.equal(dcl(z1, z2, impl=impl), dcl(z1.clone(), z2.clone(), impl=impl))
    value = dcl(z1, z2, sigma=0.5, impl=impl)
    # The weights are torch's sums, whose order is that of the memory.
    torch.testing.assert_close(value, dcl(z1.clone(), z2.clone(), sigma=0.5, impl=impl), rtol=1e-6, atol=1e-6)
    value.backward()
    assert base.grad is not None and bool(base.grad.isfinite().all())


def test_autocast_changes_nothing_and_bits_repeat(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device).requires_grad_() for z in views(200, 8))
    with torch.autocast(device, torch.bfloat16):
        value = dcl(z1, z2, sigma=0.5, impl=impl)
    again = dcl(z1, z2, sigma=0.5, impl=impl)
    assert value.dtype == torch.float32 and torch.equal(value, again)
    assert torch.equal(torch.autograd.grad(value, z1)[0], torch.autograd.grad(again, z1)[0])


def test_module_is_the_function(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(6, 4))
    weight = torch.rand(6, device=device)
    module = DCLLoss(temperature=0.3, sigma=0.5, reduction="sum", impl=impl)
    expected = dcl(z1, z2, temperature=0.3, sigma=0.5, reduction="sum", weight=weight, impl=impl)
    assert torch.equal(module(z1, z2, weight), expected) and "sigma=0.5" in repr(module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"z2": torch.ones(4, 2)}, r"z2 must have the shape.*\[3, 2\].*got \[4, 2\]"),
        ({"sigma": 0.0}, "sigma must be positive or None, got 0.0"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"impl": "fast"}, "impl of dcl must be 'auto' or one of"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dcl(**{"z1": torch.ones(3, 2), "z2": torch.ones(3, 2), **options})


@pytest.mark.parametrize("sigma", SIGMAS)
def test_lightly_agrees(sigma: float | None) -> None:
    loss = pytest.importorskip("lightly.loss")
    z1, z2 = (z.detach() for z in views(12, 8))
    theirs = loss.DCLLoss(temperature=0.2) if sigma is None else loss.DCLWLoss(temperature=0.2, sigma=sigma)
    torch.testing.assert_close(dcl(z1, z2, temperature=0.2, sigma=sigma), theirs(z1, z2), rtol=1e-9, atol=0)


@pytest.mark.parametrize("num_samples", [0, 1])
def test_without_negatives_the_temperature_has_the_gradient_zero(num_samples: int, impl: str, device: str) -> None:
    z1, z2 = (torch.ones(num_samples, 3, device=device, requires_grad=True) for _ in range(2))
    for function in (dcl_reference, lambda *inputs, **options: dcl(*inputs, impl=impl, **options)):
        temperature = torch.tensor(0.5, device=device, requires_grad=True)
        function(z1, z2, temperature=temperature).backward()
        assert temperature.grad is not None and temperature.grad.item() == 0
