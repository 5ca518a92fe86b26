"""CLIP's loss: every implementation against the equation, and the equation against the paper's pseudocode."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import CLIPLoss, clip_loss
from ssl_fast.ops.clip_loss import clip_loss_reference
from tests.ops.towers import number, towers

OP = "clip_loss"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def of(impl: str, scale: float = 10.0, **options: Any) -> Callable[..., Tensor]:
    return lambda image, text: clip_loss(image, text, scale, impl=impl, **options)


def reference(scale: float = 10.0, **options: Any) -> Callable[..., Tensor]:
    return lambda image, text: clip_loss_reference(image, text, scale, **options)


def paper(image: Tensor, text: Tensor, t: float) -> Tensor:
    """Figure 3 of the paper, line by line (after the encoders and their projections); t is the logarithm."""
    i_e, t_e = image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
    logits = i_e @ t_e.T * math.exp(t)
    labels = torch.arange(len(image))
    loss_i = F.cross_entropy(logits.T, labels)  # axis=0: over the images
    loss_t = F.cross_entropy(logits, labels)
    return (loss_i + loss_t) / 2


# The equation


def test_reference_is_the_pseudocode_of_the_paper() -> None:
    image, text = (z.detach() for z in towers(7, 5))
    for t in (0.0, math.log(1 / 0.07), math.log(100)):
        torch.testing.assert_close(clip_loss_reference(image, text, math.exp(t)), paper(image, text, t))


def test_implementation_is_the_pseudocode_of_the_paper(impl: str, device: str) -> None:
    image, text = (z.detach().float() for z in towers(300, 40))
    for t in (0.0, math.log(100)):
        value = clip_loss(image.to(device), text.to(device), math.exp(t), impl=impl)
        assert value.item() == pytest.approx(paper(image.double(), text.double(), t).item(), rel=2e-6)


def test_open_clip(impl: str, device: str) -> None:
    loss = pytest.importorskip("open_clip.loss").ClipLoss()
    image, text = (F.normalize(z.detach()).float().to(device).requires_grad_() for z in towers(130, 33))
    scale = number(30.0, torch.float32)
    theirs, ours = loss(image, text, scale), clip_loss(image, text, scale, normalize=False, impl=impl)
    torch.testing.assert_close(ours, theirs)
    inputs = (image, text, scale)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs))


def test_numbers_worked_by_hand(impl: str, device: str) -> None:
    eye = torch.eye(4, device=device)
    # cosine 1 with the positive, 0 with 3 others, in both directions; lengths play no part
    assert clip_loss(3 * eye, 5 * eye, 2.0, impl=impl).item() == pytest.approx(math.log(math.exp(2) + 3) - 2, rel=1e-6)
    # Rows as they are: 15 / 10 for the positive
    expected = math.log(math.exp(1.5) + 3) - 1.5
    assert clip_loss(3 * eye, 5 * eye, 0.1, normalize=False, impl=impl).item() == pytest.approx(expected, rel=1e-6)
    # Two images on one axis, texts on two: image 1 sees (1, 0), image 2 sees (1, 0); text 1 sees (1, 1), text 2 (0, 0)
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0]], device=device)
    rows = clip_loss(image, torch.eye(2, device=device), 1.0, reduction="none", impl=impl)
    expected_rows = [[math.log(1 + math.exp(-1)), math.log(1 + math.e)], [math.log(2), math.log(2)]]
    torch.testing.assert_close(rows.cpu(), torch.tensor(expected_rows))


@pytest.mark.parametrize("num_rows", [2, 5, 193, 400])
def test_identical_embeddings_give_log_of_the_batch(num_rows: int, impl: str, device: str) -> None:
    same = torch.ones(num_rows, 16, device=device)
    for scale in (1.0, 100.0):
        assert clip_loss(same, same, scale, impl=impl).item() == pytest.approx(math.log(num_rows), rel=1e-6)


def test_order_of_pairs_and_of_towers_plays_no_part(impl: str, device: str) -> None:
    image, text = (z.detach().float().to(device) for z in towers(33, 8))
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    rows = clip_loss(image, text, 10.0, reduction="none", impl=impl)
    shuffled = clip_loss(image[order], text[order], 10.0, reduction="none", impl=impl)
    torch.testing.assert_close(shuffled, rows[:, order])
    torch.testing.assert_close(clip_loss(text, image, 10.0, reduction="none", impl=impl), rows.flip(0))


def test_gradients_are_tangent(impl: str, device: str) -> None:
    image, text = (z.detach().float().to(device).requires_grad_() for z in towers(16, 8))
    gradients = torch.autograd.grad(clip_loss(image, text, 9.0, impl=impl), (image, text))
    for x, gradient in zip((image, text), gradients, strict=True):
        assert (gradient * x).sum(1).abs().max() < 1e-6 * gradient.norm()


# Against float64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (33, 7), (1, 5), (2, 1), (200, 65)], ids=str)
def test_value_and_gradients_by_the_rule(  # type: ignore[no-untyped-def]
    shape: tuple[int, int], dtype: torch.dtype, impl: str, device: str, checker
) -> None:
    for reduction in ("mean", "sum", "none"):
        options = {"scale": 5.0, "reduction": reduction}
        generator = torch.Generator().manual_seed(2)
        rows = torch.rand(2, shape[0], dtype=torch.float64, generator=generator)
        upstream = rows if reduction == "none" else torch.tensor(3.0)
        checker.against(of(impl, **options), reference(**options), towers(*shape), dtype, device, upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_as_they_are(dtype: torch.dtype, impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    options = {"scale": 2.0, "normalize": False}
    checker.against(of(impl, **options), reference(**options), towers(40, 24), dtype, device)


def without_cancellation(image: Tensor, text: Tensor, scale: float) -> Tensor:
    """The truth for aligned towers, whose loss may be 1e-15: log l - s_positive loses it, even in float64."""
    logits = F.normalize(image) @ F.normalize(text).T * scale
    own = torch.eye(len(image), dtype=torch.bool)
    negatives = logits.masked_fill(own, -torch.inf)
    margins = torch.stack([negatives.logsumexp(1 - side) - logits.diagonal() for side in range(2)])
    return F.softplus(margins, threshold=60).mean()


# What loss and gradients may lose, relative to their size, up to a scale of 50; beyond, the rounding of a similarity
# grows with the scale. In bf16 and fp16 it is the rounding of the gradient itself.
SWEEP = {torch.float32: (5e-6, 1.5e-5), torch.bfloat16: (5e-6, 2e-3), torch.float16: (5e-6, 5e-4)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [0.0, 0.7, 0.9, 0.99])
def test_aligned_towers(alignment: float, dtype: torch.dtype, impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    for scale in (100.0, 50.0, 20.0, 14.3, 5.0, 2.0):
        inputs, rounding = towers(256, 128, alignment), max(1.0, scale / 50)
        inputs = tuple(z.detach().to(dtype).requires_grad_() for z in inputs)
        truth = lambda a, b, s=scale: without_cancellation(a, b, s)  # noqa: E731
        checker.against(of(impl, scale), reference(scale), inputs, dtype, device, truth=truth)
        # Scaled so that fp16 can hold the gradient, as a loss scale does.
        wanted = checker.run(truth, [z.detach().double().requires_grad_() for z in inputs])
        up = 100 / torch.cat(wanted[1:]).norm()
        found = checker.run(of(impl, scale), [z.detach().to(device).requires_grad_() for z in inputs], up.float())
        assert (found[0] - wanted[0]).abs() <= SWEEP[dtype][0] * rounding * wanted[0], f"loss at scale {scale}"
        gradients = torch.cat(found[1:]), torch.cat(wanted[1:]) * up.float()
        assert (gradients[0] - gradients[1]).norm() <= SWEEP[dtype][1] * rounding * 100, f"gradient at scale {scale}"


def test_weights_and_scale_have_gradients(impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    weight = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for reduction in ("mean", "sum", "none"):

        def ours(image: Tensor, text: Tensor, w: Tensor, s: Tensor, reduction: str = reduction) -> Tensor:
            return clip_loss(image, text, s, weight=w, reduction=reduction, impl=impl)

        def theirs(image: Tensor, text: Tensor, w: Tensor, s: Tensor, reduction: str = reduction) -> Tensor:
            return clip_loss_reference(image, text, s, weight=w, reduction=reduction)

        checker.against(ours, theirs, (*towers(20, 12), weight, number(3.0)), torch.float32, device)


# Differentiation


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(normalize: bool, reduction: str, impl: str) -> None:
    if impl == "triton":
        pytest.skip("the Triton kernels have no float64")

    def function(image: Tensor, text: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return clip_loss(image, text, s, weight=w, normalize=normalize, reduction=reduction, impl=impl)

    inputs = (*towers(4, 3), number(2.0), torch.rand(4, dtype=torch.float64).add(0.1).requires_grad_())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_each_input_gets_a_gradient_only_when_it_asks(impl: str, device: str) -> None:
    image, text = (z.detach().float().to(device) for z in towers(9, 4))
    clip_loss(image.requires_grad_(), text, 5.0, impl=impl).backward()
    assert image.grad is not None and text.grad is None
    assert not clip_loss(image.detach(), text, 5.0, impl=impl).requires_grad
    scale = number(5.0, torch.float32)
    clip_loss(image.detach(), text, scale, impl=impl).backward()
    assert scale.grad is not None


def test_one_tensor_as_both_towers(impl: str, device: str) -> None:
    x = towers(9, 4)[0].detach().float().to(device).requires_grad_()
    two = [x.detach().clone().requires_grad_() for _ in range(2)]
    (found,) = torch.autograd.grad(clip_loss(x, x, 5.0, impl=impl), x)
    torch.testing.assert_close(found, sum(torch.autograd.grad(clip_loss(*two, 5.0, impl=impl), two)))


def test_upstream_gradient_of_stride_zero_and_twice(impl: str, device: str) -> None:
    image, text = (z.detach().float().to(device).requires_grad_() for z in towers(9, 4))
    rows = clip_loss(image, text, 5.0, reduction="none", impl=impl)
    stretched = torch.ones(1, device=device).expand(2, 9)
    (first,) = torch.autograd.grad(rows, image, stretched, retain_graph=True)
    assert torch.equal(first, torch.autograd.grad(rows, image, torch.ones_like(rows))[0])


def test_transform_of_torch_func() -> None:
    image, text = (z.detach() for z in towers(5, 3))
    expected = torch.autograd.functional.jacobian(lambda a: clip_loss_reference(a, text, 4.0), image)
    torch.testing.assert_close(torch.func.grad(lambda a: clip_loss(a, text, 4.0))(image), expected)


# Kinds of inputs


def test_not_contiguous(impl: str, device: str) -> None:
    base = torch.randn(7, 2, 10, device=device).requires_grad_()
    image, text = base[:, 0, ::2], base[:, 1, 1::2]
    dense = (image.detach().clone().requires_grad_(), text.detach().clone().requires_grad_())
    value, expected = clip_loss(image, text, 5.0, impl=impl), clip_loss(*dense, 5.0, impl=impl)
    value.backward()
    expected.backward()
    # Not bit for bit: torch's own small products depend on the alignment of their memory.
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    assert base.grad is not None
    torch.testing.assert_close(base.grad[:, 0, ::2], dense[0].grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(base.grad[:, 1, 1::2], dense[1].grad, rtol=1e-5, atol=1e-7)


def test_no_pairs_and_no_negatives(impl: str, device: str) -> None:
    for num_rows in (0, 1):
        for reduction in ("mean", "none"):
            x = torch.ones(num_rows, 4, device=device, requires_grad=True)
            value = clip_loss(x, x.detach(), 100.0, reduction=reduction, impl=impl)
            value.sum().backward()
            assert not value.any() and x.grad is not None and x.grad.shape == (num_rows, 4) and not x.grad.any()


def test_zero_rows_stay_finite(impl: str, device: str) -> None:
    image, text = (z.detach().float().to(device) for z in towers(6, 4))
    image[2], text[3] = 0, 0
    image.requires_grad_(), text.requires_grad_()
    clip_loss(image, text, 100.0, impl=impl).backward()
    assert image.grad is not None and text.grad is not None
    assert bool(image.grad.isfinite().all() and text.grad.isfinite().all())


def test_logits_of_hundreds(impl: str, device: str, checker) -> None:  # type: ignore[no-untyped-def]
    """Rows as they are may be long: the maximum has to follow, in rows and in columns."""
    image, text = towers(250, 16)
    growth = torch.linspace(1, 8, 250, dtype=torch.float64)[:, None]
    inputs = [(z.detach() * growth).requires_grad_() for z in (image, text)]
    options = {"scale": 10.0, "normalize": False}
    checker.against(of(impl, **options), reference(**options), inputs, torch.float32, device)


def test_autocast_and_two_dtypes(impl: str, device: str) -> None:
    image, text = (z.detach().float().to(device) for z in towers(16, 8))
    with torch.autocast(device, torch.bfloat16):
        value = clip_loss(image, text, 5.0, impl=impl)
    assert value.dtype == torch.float32 and torch.equal(value, clip_loss(image, text, 5.0, impl=impl))
    half = image.bfloat16().requires_grad_()
    mixed = clip_loss(half, text, 5.0, impl=impl)
    assert torch.equal(mixed, clip_loss(half.float(), text, 5.0, impl=impl))
    (gradient,) = torch.autograd.grad(mixed, half)
    assert gradient.dtype == torch.bfloat16


def test_the_same_bits_every_time(impl: str, device: str) -> None:
    image, text = (z.detach().float().to(device).requires_grad_() for z in towers(450, 40))
    runs = []
    for _ in range(3):
        value = clip_loss(image, text, 50.0, impl=impl)
        runs.append((value.detach(), *torch.autograd.grad(value, (image, text))))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


# As an op of torch


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_compiled_in_one_graph(backend: str, reduction: str, impl: str, device: str) -> None:
    torch._dynamo.reset()
    image, text = (z.detach().float().to(device).requires_grad_() for z in towers(12, 8))
    inputs = (image, text, torch.rand(12, device=device).requires_grad_(), number(5.0, torch.float32).to(device))

    def function(image: Tensor, text: Tensor, w: Tensor, s: Tensor) -> Tensor:
        return clip_loss(image * 2, text, s.exp(), weight=w, reduction=reduction, impl=impl).square().sum()

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    value, expected = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), expected.detach())


@pytest.mark.parametrize("with_scale", [False, True])
def test_the_registered_op_keeps_torchs_rules(with_scale: bool, impl: str, device: str) -> None:
    image, text = (z.detach().float().to(device).requires_grad_() for z in towers(6, 4))
    scale = number(5.0, torch.float32).to(device) if with_scale else None
    weight = torch.rand(6, device=device) if with_scale else None
    whole = (image, text, weight, scale, 5.0, True, 2, True, "", 1, impl, True)
    torch.library.opcheck(torch.ops.ssl_fast.clip_loss, whole)
    torch.library.opcheck(torch.ops.ssl_fast.clip_loss_rows, (image, text, scale, 5.0, True, 2, "", impl))


def test_module_is_the_function(impl: str, device: str) -> None:
    image, text = (z.detach().float().to(device) for z in towers(6, 4))
    weight = torch.rand(6, device=device)
    module = CLIPLoss(normalize=False, reduction="sum", impl=impl)
    expected = clip_loss(image, text, 3.0, normalize=False, reduction="sum", weight=weight, impl=impl)
    assert torch.equal(module(image, text, 3.0, weight=weight), expected)
    assert "reduction='sum'" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(3), torch.ones(3), 1.0), {}, r"image must be floating point of shape \[N, D\].*\[3\]"),
        ((torch.ones(3, 2).int(), torch.ones(3, 2), 1.0), {}, "image must be floating point.*int32"),
        ((torch.ones(3, 2), torch.ones(4, 2), 1.0), {}, r"text must have the shape.*of image.*got \[4, 2\]"),
        ((torch.ones(3, 2), torch.ones(3, 2), 0.0), {}, "logit_scale must be positive and finite, got 0.0"),
        ((torch.ones(3, 2), torch.ones(3, 2), math.nan), {}, "logit_scale must be positive and finite, got nan"),
        ((torch.ones(3, 2), torch.ones(3, 2), torch.ones(1)), {}, r"logit_scale must be.*shape \[\].*\[1\]"),
        ((torch.ones(3, 2), torch.ones(3, 2), 1.0), {"weight": torch.ones(6)}, r"weight must be.*\[3\].*\[6\]"),
        ((torch.ones(3, 2), torch.ones(3, 2), 1.0), {"reduction": "avg"}, "reduction must be .* got 'avg'"),
        ((torch.ones(3, 2), torch.ones(3, 2), 1.0), {"impl": "fast"}, "impl of clip_loss must be .* got 'fast'"),
        ((torch.ones(3, 2), torch.ones(3, 2), 1.0), {"grad_reduce": "max"}, "grad_reduce must be 'mean'.*got 'max'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip_loss(*arguments, **options)
