"""The Triton kernels of margin softmax in the interpreter against plain torch in float64."""

import pytest
import torch
from torch import Tensor

from ssl_fast.ops import class_panels
from ssl_fast.ops.class_panels import Negatives
from ssl_fast.ops.reference import margin_softmax as reference
from ssl_fast.ops.triton import margin_softmax
from tests.ops.triton import literal
from tests.ops.triton.literal import DTYPES

NAMES = ("lse", "dx", "dweight", "mean")


def tensors(M: int, C: int, S: int, D: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, weight, target; then threshold, phi, slope, row_weight, each [M]."""
    random = torch.Generator().manual_seed(M * C + S * D)
    rows = [torch.rand(M, generator=random) for _ in range(4)]
    x, weight = torch.randn(M, D, generator=random), torch.randn(C, S, D, generator=random)
    return [x.to(dtype), weight.to(dtype), torch.randint(-2, C, (M,), generator=random), rows[0] * 0.4, *rows[1:]]


def check(given: list[Tensor], scale: float | Tensor = 16.0, hard: bool = True, normalize: bool = True) -> None:
    """Both entries, by the rule."""

    def run(module, x: Tensor, weight: Tensor, target: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        threshold, phi, slope, row_weight = (row.to(torch.promote_types(x.dtype, torch.float32)) for row in rows)
        negatives = Negatives(scale, threshold if hard else None, 0.3)
        found = module.forward(x, weight, target, negatives, normalize, phi, slope, row_weight)
        coef, pull = class_panels.row_weights(found[0], phi, slope, scale, row_weight)
        return *found, *module.backward(x, weight, target, negatives, normalize, found[0], coef, pull)

    ours, plain = run(margin_softmax, *given), run(reference, *given)
    truth = run(reference, *(t.double() if t.is_floating_point() else t for t in given))
    for name, got, exact, low in zip((*NAMES, *NAMES[1:]), ours, truth, plain, strict=True):
        assert got.shape == exact.shape and got.dtype == torch.float32 and got.isfinite().all()
        if given[0].dtype == torch.bfloat16:  # plain torch multiplies in fp32; we round the weights of the products
            assert (got - exact).norm() <= 4e-3 * exact.norm(), name
        else:
            literal.check_rule(got, exact, low, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(33, 150, 1, 20), (5, 40, 3, 7), (1, 2, 1, 1), (3, 2, 9, 4)], ids=str)
def test_equals_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = tensors(*shape, dtype)
    check(given)
    check(given, hard=False, scale=torch.tensor(9.0))


def test_rows_of_any_length_as_they_are() -> None:
    given = tensors(9, 30, 2, 8)
    check([given[0] / 9, given[1] / 3, *given[2:]], normalize=False)


def test_several_panels_and_one_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensors(20, 300, 2, 12)
    check(given)
    monkeypatch.setattr(class_panels, "_PANEL_BYTES", 20 * 2 * 4 * 130)
    assert list(class_panels.panels(20, 300, 2, 4)) == [(0, 128), (128, 256), (256, 300)]
    check(given)


def test_large_scales_and_no_class_but_the_own() -> None:
    check(tensors(20, 300, 1, 12), scale=150.0, hard=False)
    x, _, _, *rows = tensors(4, 3, 1, 6)
    check([x, torch.ones(1, 1, 6), torch.zeros(4).long(), *rows], hard=False)


def test_no_rows_and_no_classes() -> None:
    for C, M in ((3, 0), (0, 5)):
        x, _, _, *rows = tensors(M, 3, 1, 4)
        given = x, torch.randn(C, 1, 4), torch.full((M,), -1), Negatives(9.0, None, 0.0), True, *rows[1:]
        lse, dx, dweight, mean = margin_softmax.forward(*given)
        assert dx is not None and dweight is not None and mean is not None and bool((lse < -1e29).all())
        assert dx.shape == x.shape and dweight.shape == (C, 1, 4) and not any(t.any() for t in (dx, dweight, mean))


def test_a_row_that_is_no_number_spoils_no_other_and_is_not_hidden() -> None:
    for S in (1, 3):
        x, weight, target, threshold, *rows = tensors(8, 40, S, 16)
        x[3, 0] = torch.nan
        negatives = Negatives(16.0, threshold, 0.3)
        lse = margin_softmax.forward(x, weight, target, negatives, True, *rows[:2], None)[0]
        assert lse[3].isnan() and lse[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()


def test_rows_longer_than_a_program_holds_are_refused() -> None:
    assert "8193 dimensions (at most 8192)" in str(margin_softmax.unavailable(torch.ones(1, 8193)))
    assert margin_softmax.unavailable(torch.ones(1, 8192), torch.ones(3, 2, 8192)) is None
