"""The C++ kernels of NT-Xent against the literal formula in float64, for every instruction set this processor has."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.cpp import nt_xent


def literal(x: Tensor, positive: Tensor, coef: Tensor, inv_temperature: float, normalize: bool) -> tuple[Tensor, ...]:
    """loss, log of the total normaliser, dx, and d objective / d inv_temperature, in float64."""
    x = x.double().requires_grad_()
    scale = torch.tensor(inv_temperature, dtype=torch.float64, requires_grad=True)
    z = F.normalize(x, dim=1, eps=1e-12) if normalize else x
    s = z @ z.T * scale
    rows = torch.arange(len(x))
    own = rows[:, None] == rows
    s_positive = s[rows, positive]
    negative = s.masked_fill(own | (positive[:, None] == rows), -torch.inf).logsumexp(1)
    loss = torch.logaddexp(negative - s_positive, torch.zeros_like(s_positive))
    dx, dscale = torch.autograd.grad((coef.double() * loss).sum(), (x, scale))
    return loss.detach(), s.detach().masked_fill(own, -torch.inf).logsumexp(1), dx, dscale


def shifted(N: int, shift: int) -> Tensor:
    """The row `shift` further on: each other's positive when shift is N / 2, one-sided otherwise."""
    return (torch.arange(N) + shift) % N


def views(N: int, D: int, noise: float = 0.7, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(N * D), dtype=torch.float64)
    x[N // 2 :] = x[: N - N // 2] * (1 - noise) + x[N // 2 :] * noise
    return x.to(dtype)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


EPS = {torch.float32: 5e-6, torch.bfloat16: 5e-6, torch.float16: 5e-6, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", list(EPS), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(
    ("N", "D", "shift"),
    [(4, 2, 2), (9, 3, 3), (130, 17, 65), (192, 32, 96), (194, 33, 97), (579, 65, 193), (770, 128, 385)],
)
@pytest.mark.parametrize("inv_temperature", [2.0, 14.0, 60.0], ids=lambda value: f"{value:g}")
def test_literal(isa: str, dtype: torch.dtype, N: int, D: int, shift: int, inv_temperature: float) -> None:
    x, positive, coef = views(N, D, dtype=dtype), shifted(N, shift), torch.rand(N) + 0.1
    loss, log_l, dx, dscale = literal(x, positive, coef, inv_temperature, True)
    found, found_log_l = nt_xent.forward(x, positive, (0, N), inv_temperature, True)
    found_dx, zdz = nt_xent.backward(x, positive, coef, found_log_l, (0, N), inv_temperature, True)
    assert found.dtype == found_dx.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert error(found, loss) < EPS[dtype]
    assert error(found_log_l, log_l) < EPS[dtype]
    assert error(found_dx, dx) < 4 * EPS[dtype]
    assert abs(zdz.sum().double() / (2 * inv_temperature) - dscale) < 10 * EPS[dtype] * (1 + abs(dscale))


@pytest.mark.parametrize("inv_temperature", [5.0, 50.0], ids=["fixed", "online"])
@pytest.mark.parametrize("shift", [200, 133], ids=["mutual", "one_sided"])
def test_partial_rows(isa: str, inv_temperature: float, shift: int) -> None:
    N, x = 400, views(400, 40)
    positive, coef = shifted(N, shift), torch.rand(N)
    loss, log_l, dx, _ = literal(x, positive, coef, inv_temperature, True)
    for rows in ((0, 1), (0, 399), (3, 4), (11, 203), (200, 400)):
        part = slice(*rows)
        found, found_log_l = nt_xent.forward(x, positive, rows, inv_temperature, True)
        found_dx, _ = nt_xent.backward(x, positive, coef, log_l.float(), rows, inv_temperature, True)
        assert error(found, loss[part]) < 5e-6
        assert error(found_log_l, log_l[part]) < 1e-6
        # Where a mutual pair is split, the other row's 1 - p comes from log_l and its rounding.
        assert error(found_dx, dx[part]) < (1e-3 if shift == 200 and inv_temperature == 50 else 2e-5)
    assert nt_xent.forward(x, positive, (7, 7), inv_temperature, True)[0].shape == (0,)


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0], ids=["short", "unit", "long"])
def test_raw_rows(isa: str, scale: float) -> None:
    """Without normalisation the logits' range follows the rows' lengths; long ones need the online maximum."""
    N, positive, coef = 390, shifted(390, 195), torch.rand(390)
    x = F.normalize(views(N, 48), dim=1) * torch.linspace(0.5, 1.5, N)[:, None] * scale
    loss, log_l, dx, dscale = literal(x, positive, coef, 10.0, False)
    found, found_log_l = nt_xent.forward(x, positive, (0, N), 10.0, False)
    found_dx, zdz = nt_xent.backward(x, positive, coef, log_l.float(), (0, N), 10.0, False)
    assert error(found, loss) < 1e-5
    assert error(found_log_l, log_l) < 1e-6
    # The logits reach 10 scale^2: their own rounding in float32 is what remains.
    assert error(found_dx, dx) < 2e-6 * max(1.0, 10 * scale**2)
    assert abs(zdz.sum() / 20 - dscale) < 1e-5 * (1 + abs(dscale)) * max(1.0, scale**2)


@pytest.mark.parametrize("inv_temperature", [10.0, 14.0, 20.0, 100.0], ids=lambda value: f"{value:g}")
@pytest.mark.parametrize("noise", [1.0, 0.3, 0.1, 0.01])
def test_aligned_views(isa: str, noise: float, inv_temperature: float) -> None:
    """Nothing cancels when the positive holds nearly all of the sum: relative errors stay small with the gradient."""
    N, D = 600, 128
    x, positive, coef = views(N, D, noise), shifted(N, N // 2), torch.full((N,), 1 / N)
    loss, _, dx, _ = literal(x, positive, coef, inv_temperature, True)
    found, log_l = nt_xent.forward(x, positive, (0, N), inv_temperature, True)
    found_dx, _ = nt_xent.backward(x, positive, coef, log_l, (0, N), inv_temperature, True)
    assert error(found, loss) < 2e-6 * inv_temperature
    assert error(found_dx, dx) < 2e-6 * inv_temperature


def test_two_rows(isa: str) -> None:
    x, positive = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([1, 0])
    loss, log_l = nt_xent.forward(x, positive, (0, 2), 10.0, True)
    dx, zdz = nt_xent.backward(x, positive, torch.ones(2), log_l, (0, 2), 10.0, True)
    assert loss.tolist() == [0, 0] and dx.count_nonzero() == 0 and zdz.count_nonzero() == 0
    assert torch.allclose(log_l, torch.tensor([6.0, 6.0]))


def test_zero_rows_are_finite(isa: str) -> None:
    x, positive, coef = views(200, 20), shifted(200, 100), torch.ones(200)
    x[[5, 105, 7]] = 0
    loss, _, dx, _ = literal(x, positive, coef, 10.0, True)
    found, log_l = nt_xent.forward(x, positive, (0, 200), 10.0, True)
    found_dx, _ = nt_xent.backward(x, positive, coef, log_l, (0, 200), 10.0, True)
    assert error(found, loss) < 5e-6
    assert found_dx.isfinite().all() and error(found_dx, dx) < 5e-6


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("inv_temperature", [10.0, 100.0], ids=["fixed", "online"])
def test_non_finite_rows_reach_the_loss(isa: str, bad: float, inv_temperature: float) -> None:
    x, positive = views(500, 20), shifted(500, 250)
    x[17, 3] = bad
    loss, log_l = nt_xent.forward(x, positive, (0, 500), inv_temperature, True)
    dx, _ = nt_xent.backward(x, positive, torch.ones(500), log_l, (0, 500), inv_temperature, True)
    assert not loss[17].isfinite() and not dx[17].isfinite().any()
    assert not loss.sum().isfinite()


@pytest.mark.parametrize("N", [400, 700, 1000], ids=["3_tiles", "4_tiles", "6_tiles"])
def test_bits_do_not_depend_on_threads(threads: None, N: int) -> None:
    x, positive, coef = views(N, 64), shifted(N, N // 2), torch.rand(N)

    def run(rows: tuple[int, int]) -> list[Tensor]:
        loss, log_l = nt_xent.forward(x, positive, rows, 10.0, True)
        whole = nt_xent.forward(x, positive, (0, N), 10.0, True)[1]
        return [loss, log_l, *nt_xent.backward(x, positive, coef, whole, rows, 10.0, True)]

    for rows in ((0, N), (5, N - 9)):
        torch.set_num_threads(1)
        expected = run(rows)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            for _ in range(3):
                assert all(map(torch.equal, run(rows), expected))


def test_concurrent_callers(threads: None) -> None:
    """The kernels run without the GIL; whoever finds the pool busy works alone, to the same bits."""
    torch.set_num_threads(2)
    x, positive = views(800, 64), shifted(800, 400)
    expected = nt_xent.forward(x, positive, (0, 800), 10.0, True)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: nt_xent.forward(x, positive, (0, 800), 10.0, True), range(16)))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))


def test_survives_fork(threads: None) -> None:
    torch.set_num_threads(2)
    x, positive = views(600, 64), shifted(600, 300)
    expected = nt_xent.forward(x, positive, (0, 600), 10.0, True)[0]  # the pool has its threads now
    child = os.fork()
    if child == 0:
        same = torch.equal(nt_xent.forward(x, positive, (0, 600), 10.0, True)[0], expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("wrong", [-1, 4, 2])
def test_positive_must_be_another_row(wrong: int) -> None:
    with pytest.raises(ValueError, match=r"positive\[2\] must be another row in \[0, 4\), got"):
        nt_xent.forward(torch.randn(4, 3), torch.tensor([1, 0, wrong, 2]), (0, 4), 10.0, True)


def test_isa_by_environment() -> None:
    code = "import ssl_fast._cpu as cpu; print(cpu.isa())"

    def run(name: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SSL_FAST_ISA": name}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert run("generic").stdout == "generic\n"
    assert "SSL_FAST_ISA must be avx512, avx2 or generic, not 'sse9'" in run("sse9").stderr


def test_unavailable_says_why() -> None:
    assert nt_xent.unavailable() is None and nt_xent.unavailable(torch.zeros(1)) is None
    assert "CPU tensors" in str(nt_xent.unavailable(torch.zeros(1, device="meta")))
    assert "int64" in str(nt_xent.unavailable(torch.zeros(1, dtype=torch.int64)))
