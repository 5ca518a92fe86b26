"""One checker for all ops: every implementation against the reference in float64, judged by the reference's own errors.

The rule: error <= 2 x the error of the reference run in the input's dtype + eps x size of the float64 result, as a
maximum and as a norm. Inputs are rounded to the dtype first: the float64 result is the truth for what was passed in.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def luck(name: str, num_elements: int) -> float:
    """What is added to the rule, relative to the size of the result, in roundings of fp32.

    The reference's own error is a random number, and may vanish where there are few elements. Over 40 seeds the largest
    error of plain torch reached 1.09 of the rule with 16,384 elements and 1.65 with fewer; its norm 0.84.
    """
    roundings = 4 if num_elements < 8192 else 1 if name == "maximum" else 0
    return roundings * torch.finfo(torch.float32).eps


@dataclass
class Errors:
    """Relative to the largest float64 element (maximum) and to its norm: output first, then each gradient."""

    largest: list[float]
    norm: list[float]


@dataclass
class Checker:
    """Compares functions of tensors, output and gradients of all inputs."""

    def run(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor | None = None
    ) -> list[Tensor]:
        """Output and gradients in float64; upstream is 1 where none is given."""
        leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
        output = function(*leaves)
        wanted = [t for t in leaves if t.requires_grad]
        upstream = torch.ones_like(output) if upstream is None else upstream.to(output.dtype)
        gradients = torch.autograd.grad(output, wanted, upstream)
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
    ) -> Errors:
        """Asserts the rule and returns the errors. `truth` gives the float64 result where `reference` loses it."""
        rounded = [t.detach().to(dtype).requires_grad_(t.requires_grad) for t in inputs]
        exact = self.run(
            truth or reference, [t.detach().double().requires_grad_(t.requires_grad) for t in rounded], upstream
        )
        low = self.run(reference, rounded, upstream)
        ours = self.run(function, [t.detach().to(device).requires_grad_(t.requires_grad) for t in rounded], upstream)
        errors, eps = Errors([], []), torch.finfo(dtype).eps
        for index, (truth, reference_low, got) in enumerate(zip(exact, low, ours, strict=True)):
            assert got.shape == truth.shape and bool(got.isfinite().all())
            for name, into, size in (
                ("maximum", errors.largest, lambda t: t.abs().max().item() if t.numel() else 0.0),
                ("norm", errors.norm, lambda t: t.norm().item()),
            ):
                error, allowed = size(got - truth), 2 * size(reference_low - truth) + eps * size(truth)
                allowed += luck(name, truth.numel()) * size(truth)
                what = f"{name} of {'output' if index == 0 else f'gradient {index}'} ({dtype})"
                assert error <= allowed or not math.isfinite(allowed), f"{what}: {error:.3g} > {allowed:.3g}"
                into.append(error / size(truth) if size(truth) else error)
        return errors


@pytest.fixture
def checker() -> Checker:
    return Checker()


@pytest.fixture
def device(impl: str) -> str:
    """Where an implementation runs."""
    return "cuda" if impl in ("triton", "cuda") else "cpu"
