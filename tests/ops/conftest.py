"""One checker for all ops: every implementation against the reference in float64, judged by the reference's own errors.

The rule: error <= 2 x the error of the reference run in the input's dtype + eps x size of the float64 result, as a
maximum and as a norm. Inputs are rounded to the dtype first: the float64 result is the truth for what was passed in.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_fast.ops.dispatch import backends


def usable(op: str) -> list[str]:
    """Implementations that can run here; Triton on a GPU alone (its interpreter has tests of its own)."""
    table = backends()[op]
    return [i for i, state in table.items() if state == "available" and (i != "triton" or torch.cuda.is_available())]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "impl" in metafunc.fixturenames and hasattr(metafunc.module, "OP"):
        metafunc.parametrize("impl", usable(metafunc.module.OP))


def luck(name: str, num_elements: int, fewest: float = 4) -> float:
    """What is added to the rule, relative to the size of the result, in roundings of fp32.

    The reference's own error is a random number, and may vanish where there are few elements. Over 40 seeds the largest
    error of plain torch reached 1.09 of the rule with 16,384 elements and 1.65 with fewer; its norm 0.84.
    """
    roundings = fewest if num_elements < 8192 else 1 if name == "maximum" else 0
    return roundings * torch.finfo(torch.float32).eps


@dataclass
class Errors:
    """Relative to the largest float64 element (maximum) and to its norm: output first, then each gradient."""

    largest: list[float]
    norm: list[float]


@dataclass
class Checker:
    """Compares functions of tensors, output and gradients of all inputs."""

    roundings: float = 4  # of luck where there are few elements; more where thousands of cases are judged

    def run(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor | None = None
    ) -> list[Tensor]:
        """Output and gradients in float64; upstream is 1 where none is given."""
        leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
        output = function(*leaves)
        wanted = [t for t in leaves if t.requires_grad]
        upstream = torch.ones_like(output) if upstream is None else upstream.to(output.dtype)
        gradients = torch.autograd.grad(output, wanted, upstream) if wanted else ()
        assert [g.dtype for g in gradients] == [t.dtype for t in wanted], "a gradient has its input's dtype"
        return [t.detach().cpu().double() for t in (output, *gradients)]

    def against(
        self,
        function: Callable[..., Tensor],
        reference: Callable[..., Tensor],
        inputs: Sequence[Tensor],  # float64; they are rounded to `dtype`
        dtype: torch.dtype,
        device: str = "cpu",
        upstream: Tensor | None = None,
        truth: Callable[..., Tensor] | None = None,
        neighbours: int = 0,
        floor: float = 0.0,
    ) -> Errors:
        """Asserts the rule and returns the errors.

        `truth` gives the float64 result where `reference` loses it. An error is a random number: given `neighbours`,
        the rule is asked of the median over the inputs and so many others, each number moved by a rounding or not,
        against the largest error of the reference there. `floor` is allowed beside the rule: the error of float64.
        """
        rounded = _copied(inputs, dtype=dtype)
        errors, eps = Errors([], []), torch.finfo(dtype).eps
        exact, low, ours = [], [], []
        for point in (rounded, *(_moved(rounded, seed) for seed in range(neighbours))):
            exact.append(self.run(truth or reference, _copied(point, dtype=torch.float64), upstream))
            low.append(self.run(reference, point, upstream))
            ours.append(self.run(function, _copied(point, device=device), upstream))
        for index, (wide, of_reference, found) in enumerate(
            zip(*(zip(*points, strict=True) for points in (exact, low, ours)), strict=True)
        ):
            assert all(t.shape == got.shape and bool(got.isfinite().all()) for t, got in zip(wide, found, strict=True))
            for name, into, size in (
                ("maximum", errors.largest, lambda t: t.abs().max().item() if t.numel() else 0.0),
                ("norm", errors.norm, lambda t: t.norm().item()),
            ):
                error = statistics.median(size(got - t) for t, got in zip(wide, found, strict=True))
                allowed = 2 * max(size(got - t) for t, got in zip(wide, of_reference, strict=True))
                whole, number = size(wide[0]), wide[0].numel()
                allowed += (eps + luck(name, number, self.roundings)) * whole + floor
                what = f"{name} of {'output' if index == 0 else f'gradient {index}'} ({dtype})"
                assert error <= allowed or not math.isfinite(allowed), f"{what}: {error:.3g} > {allowed:.3g}"
                into.append(error / whole if whole else error)
        return errors


def _copied(tensors: Sequence[Tensor], **options: Any) -> list[Tensor]:
    return [t.detach().to(**options).requires_grad_(t.requires_grad) for t in tensors]


def _moved(tensors: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Each number one rounding up, down, or as it was."""
    generator = torch.Generator().manual_seed(seed)
    steps = [torch.randint(-1, 2, t.shape, generator=generator) * torch.finfo(t.dtype).eps for t in tensors]
    return [
        (t.detach().double() * (1 + step)).to(t.dtype).requires_grad_(t.requires_grad)
        for t, step in zip(tensors, steps, strict=True)
    ]


@pytest.fixture
def checker() -> Checker:
    return Checker()


@pytest.fixture
def device(impl: str) -> str:
    """Where an implementation runs."""
    return "cuda" if impl in ("triton", "cuda") else "cpu"
