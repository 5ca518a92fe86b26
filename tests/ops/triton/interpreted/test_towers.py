"""The Triton kernels of clip_loss and siglip_loss in the interpreter against the formula in float64."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import clip_loss, info_nce, siglip_loss
from ssl_fast.ops.triton import clip_loss as clip_kernels
from ssl_fast.ops.triton import siglip_loss as siglip_kernels
from ssl_fast.ops.triton import towers as triton_towers
from tests.ops.towers import towers
from tests.ops.triton import literal
from tests.ops.triton.literal import DTYPES

Result = dict[str, Tensor]


def inputs(num_rows: int, dim: int, aligned: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    image, text = (x.detach().to(dtype) for x in towers(num_rows, dim, aligned))
    return image, text, torch.rand(2, num_rows, generator=torch.Generator().manual_seed(1)) + 0.1


def clip_formula(image: Tensor, text: Tensor, coef: Tensor, scale: float, normalize: bool) -> Result:
    image, text = image.detach().requires_grad_(), text.detach().requires_grad_()
    factor = image.new_tensor(scale).requires_grad_()
    u, v = (F.normalize(x, dim=1, eps=1e-12) if normalize else x for x in (image, text))
    s = u @ v.T * factor
    loss = torch.stack([s.logsumexp(1 - side) - s.diagonal() for side in range(len(coef))])
    dimage, dtext, dscale = torch.autograd.grad((loss * coef.to(loss.dtype)).sum(), (image, text, factor))
    return {"loss": loss.detach(), "dimage": dimage, "dtext": dtext, "dscale": dscale}


def without_cancellation(image: Tensor, text: Tensor, coef: Tensor, scale: float) -> Result:
    """The truth for aligned towers, whose loss may be 1e-18: log l - s_positive loses it, even in float64."""
    image, text = image.double().requires_grad_(), text.double().requires_grad_()
    s = F.normalize(image) @ F.normalize(text).T * scale
    negatives = s.masked_fill(torch.eye(len(s), dtype=torch.bool), -torch.inf)
    loss = F.softplus(torch.stack([negatives.logsumexp(1 - side) - s.diagonal() for side in range(2)]), threshold=60)
    dimage, dtext = torch.autograd.grad((loss * coef.double()).sum(), (image, text))
    return {"loss": loss.detach(), "dimage": dimage, "dtext": dtext}


def siglip_formula(image: Tensor, text: Tensor, coef: Tensor, scale: float, bias: float) -> Result:
    image, text = image.detach().requires_grad_(), text.detach().requires_grad_()
    factor, offset = image.new_tensor(scale).requires_grad_(), image.new_tensor(bias).requires_grad_()
    u, v = F.normalize(image, dim=1, eps=1e-12), F.normalize(text, dim=1, eps=1e-12)
    x = (u @ v.T * factor + offset) * (1 - 2 * torch.eye(len(u), dtype=image.dtype))
    loss = F.softplus(x, threshold=60).sum(1)
    found = torch.autograd.grad((loss * coef.to(loss.dtype)).sum(), (image, text, factor, offset))
    return dict(zip(("loss", "dimage", "dtext", "dscale", "dbias"), (loss.detach(), *found), strict=True))


def run_clip(
    image: Tensor, text: Tensor, coef: Tensor, scale: float | Tensor, normalize: bool = True, parts: int = 1
) -> Result:
    """What the kernels say, the pairs cut into as many parts as ranks would hold."""
    edges = torch.linspace(0, len(image), parts + 1).int().tolist()
    pieces = list(pairwise(edges))
    loss, log_l = (
        torch.cat(t, 1)
        for t in zip(*(clip_kernels.forward(image, text, p, scale, normalize, len(coef)) for p in pieces), strict=True)
    )
    found = [clip_kernels.backward(image, text, coef, log_l, p, scale, normalize) for p in pieces]
    dimage, dtext, dscale = (torch.cat(t) for t in zip(*found, strict=True))
    return {"loss": loss, "dimage": dimage, "dtext": dtext, "dscale": dscale}


def run_siglip(
    image: Tensor, text: Tensor, coef: Tensor, scale: float | Tensor, bias: float | Tensor, parts: int = 1
) -> Result:
    edges = torch.linspace(0, len(image), parts + 1).int().tolist()
    pieces = pairwise(edges)
    found = [siglip_kernels.forward(image, text, coef, p, scale, bias, True) for p in pieces]
    names = ("loss", "dimage", "dtext", "dscale", "dbias")
    return dict(zip(names, (torch.cat(t) for t in zip(*found, strict=True)), strict=True))


def check(ours: Result, exact: Result, reference: Result) -> None:
    for name in ("loss", "dimage", "dtext"):
        literal.check_rule(ours[name], exact[name], reference[name], name)
    for name in exact.keys() - {"loss", "dimage", "dtext"}:
        # A sum of terms of both signs, each as good as its rounding.
        error = (ours[name].double().sum() - exact[name]).abs()
        allowed = 2 * (reference[name].double() - exact[name]).abs()
        assert error <= allowed + 8 * torch.finfo(reference[name].dtype).eps * ours[name].abs().sum(), name


def assert_near(ours: Result, wanted: Result) -> None:
    """Equal but for the rounding of products of other shapes."""
    for name, value in ours.items():
        assert (value - wanted[name]).norm() < 2e-5 * wanted[name].norm(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "dim"), [(49, 17), (140, 64), (17, 200), (2, 3)])
@pytest.mark.parametrize("sides", [1, 2])
def test_clip_is_the_formula(dtype: torch.dtype, num_rows: int, dim: int, sides: int) -> None:
    image, text, coef = inputs(num_rows, dim, 0.5, dtype)
    coef = coef[:sides]
    exact = clip_formula(image.double(), text.double(), coef, 10.0, True)
    check(run_clip(image, text, coef, 10.0), exact, clip_formula(image, text, coef, 10.0, True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "dim"), [(49, 17), (140, 64), (17, 200), (1, 3)])
def test_siglip_is_the_formula(dtype: torch.dtype, num_rows: int, dim: int) -> None:
    image, text, coef = inputs(num_rows, dim, 0.5, dtype)
    exact = siglip_formula(image.double(), text.double(), coef[0], 10.0, -5.0)
    check(run_siglip(image, text, coef[0], 10.0, -5.0), exact, siglip_formula(image, text, coef[0], 10.0, -5.0))


@pytest.mark.parametrize("aligned", [0.0, 0.7, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_aligned_towers(dtype: torch.dtype, aligned: float) -> None:
    image, text, coef = inputs(150, 64, aligned, dtype)
    for scale in (14.3, 100.0):
        exact = without_cancellation(image, text, coef, scale)
        ours = run_clip(image, text, coef, scale)
        check(ours, exact, clip_formula(image, text, coef, scale, True))
        for name in ("dimage", "dtext"):
            error = (ours[name].double() - exact[name]).norm() / exact[name].norm()
            assert error < {torch.float32: 3e-5, torch.bfloat16: 4e-3}[dtype], (name, scale)


def test_logits_of_hundreds() -> None:
    image, text, coef = inputs(150, 32, 0.5, torch.float32)
    image, text = image * 12, text * 12
    exact = clip_formula(image.double(), text.double(), coef, 2.0, False)
    check(run_clip(image, text, coef, 2.0, False), exact, clip_formula(image, text, coef, 2.0, False))


def test_numbers_on_the_device() -> None:
    image, text, coef = inputs(60, 32, 0.5, torch.float32)
    for name, value in run_clip(image, text, coef, torch.tensor(10.0)).items():
        torch.testing.assert_close(value, run_clip(image, text, coef, 10.0)[name], rtol=1e-5, atol=1e-6)
    wanted = run_siglip(image, text, coef[0], 10.0, -5.0)
    for name, value in run_siglip(image, text, coef[0], torch.tensor(10.0), torch.tensor(-5.0)).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3])
def test_pairs_of_several_ranks(parts: int) -> None:
    image, text, coef = inputs(70, 24, 0.5, torch.float32)
    for sides in (1, 2):
        assert_near(run_clip(image, text, coef[:sides], 50.0, parts=parts), run_clip(image, text, coef[:sides], 50.0))
    assert_near(run_siglip(image, text, coef[0], 10.0, -5.0, parts), run_siglip(image, text, coef[0], 10.0, -5.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_of_rows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, coef = inputs(150, 24, 0.5, dtype)
    clip, siglip = run_clip(image, text, coef, 50.0), run_siglip(image, text, coef[0], 10.0, -5.0)
    monkeypatch.setattr(triton_towers, "_CHUNK", 150 * 32)
    assert_near(run_clip(image, text, coef, 50.0), clip)
    assert_near(run_siglip(image, text, coef[0], 10.0, -5.0), siglip)


def test_zero_rows_are_finite_and_nan_is_not_hidden() -> None:
    image, text, coef = inputs(40, 16, 0.5, torch.float32)
    image[3], text[5] = 0, 0
    exact = clip_formula(image.double(), text.double(), coef, 10.0, True)
    ours = run_clip(image, text, coef, 10.0)
    for name in ("loss", "dimage", "dtext"):
        torch.testing.assert_close(ours[name].double(), exact[name], rtol=1e-4, atol=1e-6)
    assert all(value.isfinite().all() for value in run_siglip(image, text, coef[0], 10.0, -5.0).values())
    image[7, 2] = torch.nan
    assert run_clip(image, text, coef, 100.0)["loss"][0, 7].isnan()
    assert run_siglip(image, text, coef[0], 10.0, -5.0)["loss"][7].isnan()


def test_no_pairs_and_no_negatives() -> None:
    for num_rows in (0, 1):
        image, text, coef = inputs(num_rows, 8, 0.5, torch.float32)
        assert not any(value.any() for value in run_clip(image, text, coef, 100.0).values())
    image, text, coef = inputs(0, 8, 0.5, torch.float32)
    assert run_siglip(image, text, coef[0], 10.0, -5.0)["dimage"].shape == (0, 8)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ops_equal_the_reference(reduction: str) -> None:
    weight = torch.linspace(0.5, 1.5, 20)

    def all_three(impl: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> list[Tensor]:
        shared = {"weight": weight, "reduction": reduction, "impl": impl}
        siglip = siglip_loss(image, text, scale, bias, **shared)
        return [clip_loss(image, text, scale, **shared), siglip, info_nce(image, text, temperature=1 / scale, **shared)]

    results = []
    for impl in ("triton", "reference"):
        image, text = (x.detach().float().requires_grad_() for x in towers(20, 24))
        numbers = torch.tensor(10.0, requires_grad=True), torch.tensor(-5.0, requires_grad=True)
        values = all_three(impl, image, text, *numbers)
        sum((value * torch.linspace(0.5, 1.5, value.numel()).view(value.shape)).sum() for value in values).backward()
        results.append((*(v.detach() for v in values), image.grad, text.grad, numbers[0].grad, numbers[1].grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_autocast_changes_no_product(loss: Callable[..., Tensor]) -> None:
    """As a trainer calls them: rows in fp32 beside an autocast that would multiply them in bf16."""
    image, text, _ = inputs(12, 16, 0.5, torch.float32)
    found = []
    for enabled in (False, True):
        a, b = image.clone().requires_grad_(), text.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = loss(a, b, logit_scale=10.0, impl="triton", **({"logit_bias": -5.0} if loss is siglip_loss else {}))
        found.append((value.detach(), *torch.autograd.grad(value, (a, b))))
    assert all(torch.equal(plain, cast) for plain, cast in zip(*found, strict=True))
