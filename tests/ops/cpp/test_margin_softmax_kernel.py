"""The C++ kernel of margin softmax against the formula in float64, for every instruction set of this processor."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.adaface import adaface_margins
from ssl_fast.ops.class_panels import Negatives
from ssl_fast.ops.cpp import margin_softmax

SCALE, HARDNESS = 16.0, 0.3


def tensors(N: int, C: int, S: int, D: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(N * C + S * D)
    rows = [torch.rand(N, generator=random, dtype=torch.float64) for _ in range(4)]
    return {
        "x": torch.randn(N, D, generator=random, dtype=torch.float64),
        "weight": torch.randn(C, S, D, generator=random, dtype=torch.float64),
        "target": torch.randint(-2, C, (N,), generator=random),
        "threshold": rows[0] * 0.4,
        "phi": rows[1],
        "slope": rows[2] + 0.5,
        "row_weight": rows[3],
    }


def literal(t: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """lse [N], dx, dweight and mean [N]; phi depends on the target's cosine through its slope alone."""
    x, weight = t["x"].clone().requires_grad_(), t["weight"].clone().requires_grad_()
    scale = torch.full((len(x), 1), SCALE, dtype=torch.float64, requires_grad=True)
    cosine = torch.einsum("nd,csd->ncs", F.normalize(x), F.normalize(weight, dim=2)).max(2).values
    has = t["target"] >= 0
    own = F.one_hot(t["target"].clamp_min(0), cosine.shape[1]).bool() & has[:, None]
    f = torch.where(cosine > t["threshold"][:, None], cosine * (HARDNESS + cosine), cosine)
    lse = (f * scale).masked_fill(own, -torch.inf).logsumexp(1)
    target = torch.where(own, cosine, 0).sum(1)
    phi = t["phi"] + (target - target.detach()) * t["slope"]
    loss = (F.softplus(lse - phi * SCALE, threshold=60) * t["row_weight"]).sum()
    dx, dweight, dscale = torch.autograd.grad(loss, (x, weight, scale))
    return lse.detach(), dx, dweight, dscale.squeeze(1)


def run(t: dict[str, Tensor], dtype: torch.dtype, with_grad: bool = True) -> tuple[Tensor | None, ...]:
    x, weight = t["x"].to(dtype), t["weight"].to(dtype)
    negatives = Negatives(SCALE, t["threshold"], HARDNESS)
    row_weight = t["row_weight"] if with_grad else None
    return margin_softmax.forward(x, weight, t["target"], negatives, True, t["phi"], t["slope"], row_weight)


def given(t: dict[str, Tensor], lse: Tensor) -> tuple[Tensor, ...]:
    """The second entry: normalisers known."""
    coef = t["row_weight"] * (lse.double() - SCALE * t["phi"]).sigmoid()
    negatives = Negatives(SCALE, t["threshold"], HARDNESS)
    x, weight = t["x"].to(lse.dtype), t["weight"].to(lse.dtype)
    return margin_softmax.backward(x, weight, t["target"], negatives, True, lse, coef, coef * t["slope"])


def error(found: Tensor | None, expected: Tensor) -> float:
    assert found is not None and found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


# The fourth takes two chunks of rows, the fifth more classes than fit the panel of cosines.
SIZES = [(1, 2, 1, 3), (33, 7, 5, 17), (193, 385, 3, 40), (200, 22000, 1, 4), (20, 24000, 2, 5), (3, 2, 192, 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_literal(isa: str, size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    t = tensors(*size)
    t = t | {name: t[name].to(dtype).double() for name in ("x", "weight")}
    expected, found = literal(t), run(t, dtype)
    assert all(a is not None and a.dtype == dtype for a in found)
    eps = {torch.float32: 2e-5, torch.float64: 1e-12}[dtype]
    assert all(error(a, b) < eps for a, b in zip(found, expected, strict=True))
    assert found[0] is not None
    assert all(error(a, b) < eps for a, b in zip(given(t, found[0]), expected[1:], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs_are_exact(isa: str, dtype: torch.dtype) -> None:
    t = tensors(40, 300, 2, 33)
    t = t | {name: t[name].to(dtype).double() for name in ("x", "weight")}
    assert all(error(a, b) < 2e-5 for a, b in zip(run(t, dtype), literal(t), strict=True))


def test_without_gradients(isa: str) -> None:
    t = tensors(40, 300, 2, 33)
    lse, *gradients = run(t, torch.float32, with_grad=False)
    assert gradients == [None] * 3 and lse is not None and torch.equal(lse, run(t, torch.float32)[0])  # type: ignore[arg-type]


def test_no_classes_and_no_rows(isa: str) -> None:
    lse, dx, dweight, mean = run(tensors(5, 1, 1, 4) | {"weight": torch.zeros(0, 1, 4)}, torch.float32)
    assert lse is not None and bool((lse == -torch.inf).all()) and dx is not None and not dx.any()
    assert mean is not None and not mean.any() and dweight is not None and dweight.numel() == 0
    t = tensors(4, 3, 1, 4)
    none = {name: value[:0] for name, value in t.items()} | {"weight": t["weight"]}
    dweight = run(none, torch.float32)[2]
    assert dweight is not None and not dweight.any()


def test_a_row_that_is_no_number_spoils_no_other(isa: str) -> None:
    t = tensors(8, 500, 2, 16)
    t["x"][3, 0] = torch.nan
    lse = run(t, torch.float32, with_grad=False)[0]
    assert lse is not None and lse[3].isnan() and lse[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()


def test_bits_do_not_depend_on_threads(threads: None) -> None:
    t, results = tensors(200, 5000, 1, 24), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found = run(t, torch.float32)
        assert found[0] is not None
        results.append((*found, *given(t, found[0])))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))  # type: ignore[arg-type]


def test_survives_fork(threads: None) -> None:
    torch.set_num_threads(2)
    t = {name: value if name == "target" else value.float() for name, value in tensors(64, 500, 1, 24).items()}
    expected = run(t, torch.float32)[2]
    child = os.fork()  # in the child only our kernel runs: torch's own OpenMP threads do not survive a fork
    if child == 0:
        os._exit(0 if torch.equal(run(t, torch.float32)[2], expected) else 1)  # type: ignore[arg-type]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_too_many_centres_are_refused() -> None:
    assert "at most 192 sub-centres" in str(margin_softmax.unavailable(torch.ones(1, 2), torch.ones(1, 193, 2)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (0, 5)], ids=str)
def test_adaface_margins_are_the_equation(isa: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(1)
    x = (
        torch.randn(shape, generator=random, dtype=torch.float64)
        .mul(torch.logspace(-5, 3, shape[0])[:, None])
        .to(dtype)
    )
    found = margin_softmax.adaface_margins(x, 1.5, 0.7, 0.4, 0.333)
    expected = adaface_margins(x.double(), *torch.tensor([1.5, 0.7], dtype=torch.float64), 0.4, 0.333)
    assert found.shape == (2, len(x)) and found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-15 if dtype == torch.float64 else 1e-6)


def test_adaface_margin_of_nan_is_nan(isa: str) -> None:
    found = margin_softmax.adaface_margins(torch.tensor([[1.0, torch.nan], [1.0, 2.0]]), 1.0, 1.0, 0.4, 0.333)
    assert found.isnan().tolist() == [[True, False], [True, False]]
