"""One question for all drop-in classes: the value and every gradient of the original?"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Loss = Callable[..., Tensor]
# In fp32 both sides round: a part of the largest gradient beside a part of each element.
TOLERANCE = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-5, 1e-6)}


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = True) -> Tensor:
    """Random numbers that need a gradient."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(dtype).requires_grad_(grad)


def value_and_gradients(loss: Loss, inputs: Sequence[Tensor], others: Sequence[Tensor] = ()) -> list[Tensor]:
    """The value, then the gradients of `inputs` and of `others` (parameters) that need one; None counts as 0."""
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
    value = loss(*leaves)
    wanted = [t for t in (*leaves, *others) if t.requires_grad]
    gradients = torch.autograd.grad(value.sum(), wanted, allow_unused=True)
    return [value.detach()] + [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, wanted, strict=True)]


def close(got: Tensor, expected: Tensor, dtype: torch.dtype, what: str = "") -> None:
    """Asserts shape, and closeness relative to the element and to the largest element."""
    relative, absolute = TOLERANCE[dtype]
    assert got.shape == expected.shape, f"{what}: {got.shape} != {expected.shape}"
    size = max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    torch.testing.assert_close(
        got.double(), expected.double(), rtol=relative, atol=absolute * size, msg=lambda m: f"{what}: {m}"
    )


def same(
    ours: Loss,
    theirs: Loss,
    inputs: Sequence[Tensor],
    parameters: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ()),
) -> Tensor:
    """Asserts the same value and gradients, of `parameters` (ours, theirs) too; returns the value."""
    got = value_and_gradients(ours, inputs, parameters[0])
    expected = value_and_gradients(theirs, inputs, parameters[1])
    for index, (mine, other) in enumerate(zip(got, expected, strict=True)):
        close(mine, other, inputs[0].dtype, "value" if index == 0 else f"gradient {index}")
    return got[0]
