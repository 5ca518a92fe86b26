"""The C++ kernels of clip_loss and siglip_loss against the literal formulas in float64, for every instruction set."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.cpp import clip_loss, siglip_loss
from tests.ops.towers import towers

Result = tuple[Tensor, ...]


def literal_clip(image: Tensor, text: Tensor, coef: Tensor, scale: float, normalize: bool) -> Result:
    """loss and log of the whole normaliser [S, M], dimage, dtext, dscale, in float64."""
    image, text = (x.detach().double().requires_grad_() for x in (image, text))
    factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    u, v = (F.normalize(x, dim=1, eps=1e-12) if normalize else x for x in (image, text))
    s = u @ v.T * factor
    own = torch.eye(len(s), dtype=torch.bool)
    margins = [s.masked_fill(own, -torch.inf).logsumexp(1 - side) - s.diagonal() for side in range(len(coef))]
    loss = torch.stack([torch.logaddexp(margin, torch.zeros_like(margin)) for margin in margins])
    grads = torch.autograd.grad((coef.double() * loss).sum(), (image, text, factor))
    return loss.detach(), torch.stack([s.detach().logsumexp(1 - side) for side in range(len(coef))]), *grads


def literal_siglip(image: Tensor, text: Tensor, coef: Tensor, scale: float, bias: float, normalize: bool) -> Result:
    """loss [M], dimage, dtext, dscale, dbias, in float64."""
    image, text = (x.detach().double().requires_grad_() for x in (image, text))
    factor, offset = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (scale, bias))
    u, v = (F.normalize(x, dim=1, eps=1e-12) if normalize else x for x in (image, text))
    x = (u @ v.T * factor + offset) * (1 - 2 * torch.eye(len(u), dtype=torch.float64))
    loss = torch.logaddexp(x, torch.zeros_like(x)).sum(1)
    return loss.detach(), *torch.autograd.grad((coef.double() * loss).sum(), (image, text, factor, offset))


def inputs(M: int, D: int, aligned: float = 0.5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    image, text = (x.detach().to(dtype) for x in towers(M, D, aligned))
    return image, text, torch.rand(2, M, generator=torch.Generator().manual_seed(M)) + 0.1


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def run_clip(image: Tensor, text: Tensor, coef: Tensor, scale: float, normalize: bool = True) -> Result:
    loss, log_l = clip_loss.forward(image, text, (0, len(image)), scale, normalize, len(coef))
    return loss, log_l, *clip_loss.backward(image, text, coef, log_l, (0, len(image)), scale, normalize)


def run_siglip(
    image: Tensor, text: Tensor, coef: Tensor, scale: float, bias: float, normalize: bool = True
) -> list[Tensor]:
    found = siglip_loss.forward(image, text, coef, (0, len(image)), scale, bias, normalize)
    return [t for t in found if t is not None]


EPS = {torch.float32: 5e-6, torch.bfloat16: 5e-6, torch.float16: 5e-6, torch.float64: 1e-12}
SIZES = [(1, 3), (2, 2), (9, 3), (130, 17), (192, 32), (194, 33), (579, 65), (400, 512)]


@pytest.mark.parametrize("dtype", list(EPS), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("M", "D"), SIZES)
@pytest.mark.parametrize("sides", [1, 2])
def test_clip_is_the_formula(isa: str, dtype: torch.dtype, M: int, D: int, sides: int) -> None:
    image, text, coef = inputs(M, D, dtype=dtype)
    for scale in (2.0, 14.3, 100.0):
        expected, found = (f(image, text, coef[:sides], scale, True) for f in (literal_clip, run_clip))
        assert found[0].dtype == found[2].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert found[1].dtype == torch.float64
        for name, a, b in zip(("loss", "log_l", "dimage", "dtext"), found, expected, strict=False):
            assert error(a, b) < EPS[dtype] * max(1.0, scale / 20), (name, scale)
        assert abs(found[4].double().sum() - expected[4]) < 10 * EPS[dtype] * (1 + abs(expected[4])) * max(
            1, scale / 20
        )


@pytest.mark.parametrize("dtype", list(EPS), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("M", "D"), SIZES)
def test_siglip_is_the_formula(isa: str, dtype: torch.dtype, M: int, D: int) -> None:
    image, text, coef = inputs(M, D, dtype=dtype)
    for scale, bias in ((10.0, -10.0), (100.0, -16.0), (1.0, 3.0)):
        expected, found = (f(image, text, coef[0], scale, bias, True) for f in (literal_siglip, run_siglip))
        for name, a, b in zip(("loss", "dimage", "dtext"), found, expected, strict=False):
            assert error(a, b) < EPS[dtype] * max(1.0, scale / 20), (name, scale)
        for a, b in zip(found[3:], expected[3:], strict=True):
            assert abs(a.double().sum() - b) < EPS[dtype] * a.double().abs().sum() * max(1.0, scale / 20)


@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_some_pairs_of_all_ranks(isa: str, scale: float) -> None:
    image, text, coef = inputs(430, 40)
    clip, siglip = literal_clip(image, text, coef, scale, True), literal_siglip(image, text, coef[0], scale, -5.0, True)
    for rows in ((0, 1), (0, 429), (3, 4), (11, 203), (192, 384), (200, 430)):
        part = slice(*rows)
        loss, log_l = clip_loss.forward(image, text, rows, scale, True, 2)
        dimage, dtext, _ = clip_loss.backward(image, text, coef, clip[1], rows, scale, True)
        wanted = (clip[0][:, part], clip[1][:, part], clip[2][part], clip[3][part])
        for a, b in zip((loss, log_l, dimage, dtext), wanted, strict=True):
            assert error(a, b) < 2e-5
        found = siglip_loss.forward(image, text, coef[0], rows, scale, -5.0, True)
        for a, b in zip(found, siglip[:3], strict=False):
            assert a is not None and error(a, b[part]) < 2e-5
    assert clip_loss.forward(image, text, (7, 7), scale, True, 2)[0].shape == (2, 0)
    shares = [clip_loss.backward(image, text, coef, clip[1], rows, scale, True)[2] for rows in ((0, 150), (150, 430))]
    assert abs(sum(share.double().sum() for share in shares) - clip[4]) < 1e-4 * (1 + abs(clip[4]))


@pytest.mark.parametrize("length", [0.1, 1.0, 12.0], ids=["short", "unit", "long"])
def test_rows_as_they_are(isa: str, length: float) -> None:
    image, text, coef = inputs(390, 48)
    image, text = (x * torch.linspace(0.5, 1.5, 390)[:, None] * length for x in (image, text))
    size = max(1.0, 10 * length**2)  # of the logits, whose own rounding in float32 is what remains
    for a, b in zip(
        run_clip(image, text, coef, 10.0, False), literal_clip(image, text, coef, 10.0, False)[:4], strict=False
    ):
        assert a.isfinite().all() and error(a, b) < 2e-6 * size
    expected = literal_siglip(image, text, coef[0], 10.0, -5.0, False)[:3]
    for a, b in zip(run_siglip(image, text, coef[0], 10.0, -5.0, False), expected, strict=False):
        assert a.isfinite().all() and error(a, b) < 2e-6 * size


@pytest.mark.parametrize("aligned", [0.0, 0.9, 0.99, 0.9999])
def test_aligned_towers(isa: str, aligned: float) -> None:
    """Nothing cancels when the positive holds nearly all of the sum: relative errors stay small with the gradient."""
    image, text, coef = inputs(600, 128, aligned)
    for scale in (10.0, 100.0):
        found, expected = run_clip(image, text, coef, scale), literal_clip(image, text, coef, scale, True)
        for name, a, b in zip(("loss", "log_l", "dimage", "dtext"), found, expected, strict=False):
            assert error(a, b) < 1e-6 * (10 + scale), (name, scale)


def test_zero_and_non_finite_rows(isa: str) -> None:
    image, text, coef = inputs(300, 20)
    image[[5, 105]], text[[5, 7]] = 0, 0
    for found, expected in (
        (run_clip(image, text, coef, 10.0), literal_clip(image, text, coef, 10.0, True)[:4]),
        (run_siglip(image, text, coef[0], 10.0, -5.0), literal_siglip(image, text, coef[0], 10.0, -5.0, True)[:3]),
    ):
        for a, b in zip(found, expected, strict=False):
            assert a.isfinite().all() and error(a, b) < 5e-6
    image[17, 3] = torch.nan
    assert (
        run_clip(image, text, coef, 100.0)[0][0, 17].isnan()
        and run_siglip(image, text, coef[0], 9.0, 0.0)[0][17].isnan()
    )


def test_bits_do_not_depend_on_threads(threads: None) -> None:
    for M in (150, 400, 700, 1000):  # 1, 3, 4 and 6 tiles
        image, text, coef = inputs(M, 64)

        def run(image: Tensor = image, text: Tensor = text, coef: Tensor = coef) -> list[Tensor]:
            parts = clip_loss.backward(image, text, coef, torch.zeros(2, len(image)).double(), (5, 140), 30.0, True)
            return [*run_clip(image, text, coef, 100.0), *run_siglip(image, text, coef[0], 10.0, -10.0), *parts]

        torch.set_num_threads(1)
        expected = run()
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            for _ in range(2):
                assert all(map(torch.equal, run(), expected))


def test_concurrent_callers(threads: None) -> None:
    """The kernels run without the GIL; whoever finds the pool busy works alone, to the same bits."""
    torch.set_num_threads(2)
    image, text, coef = inputs(800, 64)
    expected = run_clip(image, text, coef, 30.0)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: run_clip(image, text, coef, 30.0), range(8)))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))


def test_survives_fork(threads: None) -> None:
    torch.set_num_threads(2)
    image, text, _ = inputs(600, 64)
    expected = clip_loss.forward(image, text, (0, 600), 10.0, True, 2)[0]  # the pool has its threads now
    child = os.fork()
    if child == 0:
        same = torch.equal(clip_loss.forward(image, text, (0, 600), 10.0, True, 2)[0], expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
