"""The C++ kernels of vicreg, barlow_twins and byol_loss: every instruction set, any number of threads, odd sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_fast.ops.cpp import barlow_twins, byol, module, vicreg
from ssl_fast.ops.reference import barlow_twins as plain_barlow
from ssl_fast.ops.reference import byol as plain_byol
from ssl_fast.ops.reference import vicreg as plain_vicreg

# Rows and columns: one tile and several, one chunk of columns and several, and what fills neither.
SHAPES = [(1, 2), (2, 3), (8, 16), (7, 600), (193, 700), (200, 2050), (385, 390)]
EPS = {torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float16: 3e-6, torch.float64: 1e-12}
VICREG = (25.0, 25.0, 1.0, 1.0, 1e-4)
BARLOW = (0.0051, 1e-5)


def views(N: int, D: int, dtype: torch.dtype, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(N + D)
    first = torch.randn(N, D, generator=generator, dtype=torch.float64)
    second = first + 0.5 * torch.randn(N, D, generator=generator, dtype=torch.float64)
    return (first + shift).to(dtype), (second + shift).to(dtype)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("dtype", list(EPS), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kernel", "plain", "settings"),
    [(vicreg, plain_vicreg, VICREG), (barlow_twins, plain_barlow, BARLOW)],
    ids=["vicreg", "barlow_twins"],
)
def test_plain_torch(isa: str, kernel: Any, plain: Any, settings: Any, shape: Any, dtype: torch.dtype) -> None:
    z1, z2 = views(*shape, dtype)
    found = kernel.objective(z1, z2, *settings, True)
    expected = plain.forward(z1.double(), z2.double(), *settings, None, True)
    assert torch.equal(found[0], kernel.objective(z1, z2, *settings, False)[0])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for a, b in zip(found, expected, strict=True):
        # With one row, or two, everything cancels but roundings.
        assert a.dtype == wide and (error(a, b) < EPS[dtype] or (a - b).abs().max() < 100 * torch.finfo(wide).eps)


@pytest.mark.parametrize(
    ("kernel", "plain", "settings"),
    [(vicreg, plain_vicreg, VICREG), (barlow_twins, plain_barlow, BARLOW)],
    ids=["vicreg", "barlow_twins"],
)
def test_a_mean_far_from_zero_takes_few_digits(isa: str, kernel: Any, plain: Any, settings: Any) -> None:
    z1, z2 = views(100, 300, torch.float32, 100.0)
    exact = plain.forward(z1.double(), z2.double(), *settings, None, True)
    ours, theirs = kernel.objective(z1, z2, *settings, True), plain.forward(z1, z2, *settings, None, True)
    for a, b, truth in zip(ours, theirs, exact, strict=True):
        assert error(a, truth) <= 2 * error(b, truth) + 1e-6


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", list(EPS), ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_byol(isa: str, dtype: torch.dtype, normalize: bool) -> None:
    for N, D in ((1, 1), (3, 5), (40, 33), (100, 256)):
        p, z = views(N, D, dtype)
        for a, b in zip(
            byol.forward(p, z, normalize, True),
            plain_byol.forward(p.double(), z.double(), normalize, True),
            strict=True,
        ):
            assert a is not None and b is not None
            assert error(a, b) < EPS[dtype] or (a - b).abs().max() < 1e-6


def test_bits_do_not_depend_on_the_threads(isa: str) -> None:
    z1, z2 = views(200, 2050, torch.float32)
    runs = (
        lambda: vicreg.objective(z1, z2, *VICREG, True),
        lambda: barlow_twins.objective(z1, z2, *BARLOW, True),
        lambda: byol.objective(z1, None, z2, True, 1.0, 0.0, True, True),
    )
    threads = torch.get_num_threads()
    for run in runs:
        torch.set_num_threads(1)
        alone = run()
        for number in (2, 3):
            torch.set_num_threads(number)
            assert all(a is b or torch.equal(a, b) for a, b in zip(alone, run(), strict=True))
        torch.set_num_threads(threads)


class Addressed:
    """A tensor of a torch without DLPack's C exchange API, as far as the kernels ask."""

    def __init__(self, tensor: Tensor) -> None:
        self.data_ptr = tensor.data_ptr


def test_kernels_take_tensors_numbers_and_what_has_an_address() -> None:
    p, z = views(5, 7, torch.float32)
    expected, _ = byol.forward(p, z, True, False)
    for wrap in (Addressed, lambda tensor: tensor.data_ptr(), lambda tensor: torch.stack((tensor, tensor))[1]):
        found = torch.zeros(5)
        module().byol_forward(wrap(p), 0, wrap(z), 0, 5, 7, True, found, None, 1)
        assert torch.equal(found, expected)
    with pytest.raises((TypeError, AttributeError)):
        module().byol_forward("p", 0, z, 0, 5, 7, True, found, None, 1)
