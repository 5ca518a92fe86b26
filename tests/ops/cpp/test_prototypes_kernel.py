"""The C++ kernels of dino_loss and koleo against plain torch in float64, for every instruction set here."""

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.cpp import koleo, prototype_logits, prototypes
from ssl_fast.ops.reference import koleo as plain_koleo
from ssl_fast.ops.reference import prototype_logits as plain_logits
from ssl_fast.ops.reference import prototypes as plain


def inputs(S: int, T: int, N: int, K: int, D: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """student, weight, teacher, weight_teacher."""
    generator = torch.Generator().manual_seed(N + K)
    shapes = ((S, N, D), (K, D), (T, N, D), (K, D))
    return [F.normalize(torch.randn(*shape, generator=generator), dim=-1).to(dtype) for shape in shapes]


def run(module: Any, tensors: list[Tensor], bias: Tensor | None = None, skip_same: bool = True) -> list[Tensor]:
    coef = torch.linspace(0.5, 1.5, tensors[0].shape[1]).to(torch.promote_types(tensors[0].dtype, torch.float32))
    return list(module.forward(*tensors, bias, coef, 10.0, 25.0, skip_same, True, True))


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


EPS = {torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6, torch.float64: 1e-13}
SHAPES = [(1, 1, 1, 1, 1), (2, 2, 5, 7, 3), (2, 2, 97, 385, 65), (12, 2, 20, 193, 33), (64, 64, 2, 50, 8)]


@pytest.mark.parametrize("dtype", list(EPS), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_plain_torch(isa: str, dtype: torch.dtype, shape: tuple[int, ...], with_bias: bool) -> None:
    tensors = inputs(*shape, dtype)
    bias = torch.randn(shape[1], shape[3], generator=torch.Generator().manual_seed(0)) if with_bias else None
    skip_same = shape[:2] != (1, 1)
    found = run(prototypes, tensors, bias, skip_same)
    expected = run(plain, [t.double() for t in tensors], None if bias is None else bias.double(), skip_same)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert error(a, b) < EPS[dtype] or (a - b).abs().max() < 1e-6 * shape[3] ** -0.5


def test_samples_that_go_through_the_prototypes_in_several_groups() -> None:
    """11 panels of 48 samples against 105 tiles of prototypes, 16 MB each: more than go together."""
    tensors = inputs(2, 2, 520, 20000, 4)
    loss, dstudent, dweight = run(prototypes, tensors)
    coef = torch.linspace(0.5, 1.5, 520)
    parts = []
    for some in (slice(0, 48), slice(48, 500), slice(500, 520)):
        student, weight, teacher, weight_teacher = tensors
        some_of = (student[:, some].contiguous(), weight, teacher[:, some].contiguous(), weight_teacher)
        parts.append(prototypes.forward(*some_of, None, coef[some], 10.0, 25.0, True, True, True))
    torch.testing.assert_close(loss, torch.cat([part[0] for part in parts]))
    torch.testing.assert_close(dstudent, torch.cat([part[1] for part in parts], 1))
    torch.testing.assert_close(dweight, sum(part[2] for part in parts), rtol=1e-4, atol=1e-7)


LOGITS = [(1, 1, 1, 1), (2, 2, 5, 7), (2, 2, 9, 385), (12, 2, 3, 5000), (1, 3, 4, 16)]


@pytest.mark.parametrize("dtype", list(EPS), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", LOGITS, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_given_logits(isa: str, dtype: torch.dtype, shape: tuple[int, ...], with_bias: bool) -> None:
    S, T, N, K = shape
    generator = torch.Generator().manual_seed(K)
    student, teacher = (torch.randn(views, N, K, generator=generator).to(dtype) for views in (S, T))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    coef = torch.linspace(0.5, 1.5, N).to(wide)
    bias = torch.randn(T, K, generator=generator).to(wide) if with_bias else None
    settings = (10.0, 25.0, (S, T) != (1, 1), True)
    found = prototype_logits.forward(student, teacher, bias, coef, *settings)
    expected = plain_logits.forward(
        student.double(), teacher.double(), None if bias is None else bias.double(), coef.double(), *settings
    )
    for a, b in zip(found, expected, strict=True):
        assert a is not None and b is not None and a.shape == b.shape and a.dtype == wide
        assert error(a, b) < EPS[dtype] or (a - b).abs().max() < 1e-6 * K**-0.5


def test_bits_of_given_logits_do_not_depend_on_the_threads(isa: str) -> None:
    student, teacher = (torch.randn(2, 9, 700, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    found, threads = [], torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(prototype_logits.forward(student, teacher, None, torch.ones(9), 10.0, 25.0, True, True))
    torch.set_num_threads(threads)
    for loss, dstudent in found[1:]:
        assert torch.equal(loss, found[0][0]) and torch.equal(dstudent, found[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("M", "R"), [(1, 1), (300, 5), (5, 300), (1000, 400)])
def test_log_sums(isa: str, dtype: torch.dtype, M: int, R: int) -> None:
    generator = torch.Generator().manual_seed(M)
    terms, columns = (F.normalize(torch.randn(n, 33, generator=generator)).to(dtype) for n in (M, R))
    for bias in (None, 10 * torch.randn(M, generator=generator).to(torch.promote_types(dtype, torch.float32))):
        found = prototypes.log_sums(terms, columns, bias, 25.0)
        expected = plain.log_sums(terms.double(), columns.double(), bias, 25.0)
        assert (found - expected).abs().max() < (1e-12 if dtype == torch.float64 else 1e-5)
    assert prototypes.log_sums(terms[:0], columns, None, 25.0).eq(-torch.inf).all()
    assert prototypes.log_sums(terms, columns[:0], None, 25.0).shape == (0,)


def test_without_gradients_and_without_those_of_the_prototypes(isa: str) -> None:
    tensors = inputs(3, 2, 30, 400, 17)
    loss, dstudent, _ = run(prototypes, tensors)
    coef = torch.linspace(0.5, 1.5, 30)
    frozen = prototypes.forward(*tensors, None, coef, 10.0, 25.0, True, True, False)
    assert torch.equal(frozen[0], loss) and torch.equal(frozen[1], dstudent) and frozen[2] is None
    alone = prototypes.forward(*tensors, None, None, 10.0, 25.0, True, False, False)
    assert torch.equal(alone[0], loss) and alone[1:] == (None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("M", "begin", "end"), [(2, 0, 2), (193, 0, 193), (500, 190, 401), (64, 10, 10)])
def test_neighbours(isa: str, dtype: torch.dtype, M: int, begin: int, end: int) -> None:
    z = F.normalize(torch.randn(M, 9, generator=torch.Generator().manual_seed(M), dtype=dtype))
    assert torch.equal(koleo.neighbours(z, begin, end), plain_koleo.neighbours(z, begin, end))
    z[:] = z[:1].clone()  # all alike: the first other row
    assert koleo.neighbours(z, begin, end).tolist() == [1 if i == 0 else 0 for i in range(begin, end)]
    z[0] = torch.nan
    found = koleo.neighbours(z, begin, end)
    assert ((found >= 0) & (found < M)).all() and (found != torch.arange(begin, end)).all()


def test_bits_do_not_depend_on_threads(threads: None) -> None:
    tensors, results = inputs(3, 2, 100, 5000, 40), []
    bias, z = torch.randn(2, 5000), tensors[0].flatten(0, 1)
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        sums = prototypes.log_sums(tensors[1], z, bias[0], 25.0)
        results.append([*run(prototypes, tensors, bias), sums, koleo.neighbours(z, 0, len(z))])
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_survives_fork(threads: None) -> None:
    torch.set_num_threads(2)
    tensors = inputs(2, 2, 40, 2000, 16)
    expected = run(prototypes, tensors)
    child = os.fork()  # in the child only our kernel runs: torch's own OpenMP threads do not survive a fork
    if child == 0:
        os._exit(0 if all(map(torch.equal, run(prototypes, tensors), expected)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_of_masked_tokens(dtype: torch.dtype) -> None:
    masks = torch.tensor([[[1, 0], [1, 1]], [[0, 0], [0, 0]], [[0, 1], [0, 0]]], dtype=torch.bool)
    weights, found = prototype_logits.token_weights(masks, 4, dtype)
    assert found == 4
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1], dtype=dtype), rtol=1e-7, atol=0)
    strided = masks.transpose(1, 2).flatten(1).repeat(1, 2)[:, ::2]
    assert prototype_logits.token_weights(strided, 7, dtype)[1] == int(strided.sum())
    assert prototype_logits.token_weights(masks[:0], 0, dtype)[1] == 0
