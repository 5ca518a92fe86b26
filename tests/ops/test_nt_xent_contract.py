"""NT-Xent as an op of torch: compiled, registered, its module, and what it says to wrong arguments."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_fast import NTXentLoss, nt_xent
from tests.ops.test_nt_xent import views

OP = "nt_xent"


# torch.compile


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_in_one_graph(dtype: torch.dtype, backend: str, reduction: str, impl: str, device: str) -> None:
    torch._dynamo.reset()
    z1, z2 = (z.detach().to(device, dtype).requires_grad_() for z in views(12, 8))
    weight, temperature = (
        torch.rand(12, device=device).requires_grad_(),
        torch.tensor(0.3, device=device).requires_grad_(),
    )
    inputs = (z1, z2, weight, temperature)

    def function(z1: Tensor, z2: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return nt_xent(z1 * 2, z2, weight=w, temperature=t, reduction=reduction, impl=impl).square().sum()

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    value, expected = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(value, expected)
    found, wanted = torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), expected.detach())


@pytest.mark.parametrize("with_temperature", [False, True])
def test_the_registered_op_keeps_torchs_rules(with_temperature: bool, impl: str, device: str) -> None:
    x = torch.cat(views(6, 4)).detach().float().to(device).requires_grad_()
    t = torch.tensor(0.3, device=device, requires_grad=True) if with_temperature else None
    weight = torch.rand(6, device=device) if with_temperature else None
    kind = ("nt_xent", 2, -1, impl)
    torch.library.opcheck(
        torch.ops.ssl_fast.self_contrast, (x, None, weight, t, None, 5.0, True, True, "", 1, *kind, True)
    )
    torch.library.opcheck(torch.ops.ssl_fast.self_contrast_rows, (x, t, None, 5.0, True, "", *kind))


# Arguments


def test_module_is_the_function(impl: str, device: str) -> None:
    z1, z2 = (z.detach().float().to(device) for z in views(6, 4))
    weight = torch.rand(6, device=device)
    module = NTXentLoss(temperature=0.3, normalize=False, reduction="sum", impl=impl)
    expected = nt_xent(z1, z2, temperature=0.3, normalize=False, reduction="sum", weight=weight, impl=impl)
    assert torch.equal(module(z1, z2, weight=weight), expected)
    assert "temperature=0.3" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(3), torch.ones(3)), {}, r"z1 must be floating point of shape \[N, D\].*\[3\]"),
        ((torch.ones(3, 2).int(), torch.ones(3, 2)), {}, "z1 must be floating point.*int32"),
        ((torch.ones(3, 2), torch.ones(4, 2)), {}, r"z2 must have the shape.*of z1, \[3, 2\].*got \[4, 2\]"),
        ((*(torch.ones(3, 2),) * 3, torch.ones(2, 2)), {}, r"z4 must have the shape.*of z1, \[3, 2\].*got \[2, 2\]"),
        ((torch.ones(3, 2),) * 2, {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ((torch.ones(3, 2),) * 2, {"temperature": float("nan")}, "temperature must be positive, got nan"),
        ((torch.ones(3, 2),) * 2, {"temperature": torch.ones(1)}, r"temperature must be.*shape \[\].*\[1\]"),
        (
            (torch.ones(3, 2),) * 2,
            {"weight": torch.ones(6)},
            r"weight must be.*\[3\].*got torch.float32 of shape \[6\]",
        ),
        ((torch.ones(3, 2),) * 2, {"reduction": "avg"}, "reduction must be 'mean', 'sum' or 'none', got 'avg'"),
        ((torch.ones(3, 2),) * 2, {"impl": "fast"}, "impl of nt_xent must be 'auto' or one of .*reference, got 'fast'"),
        ((torch.ones(3, 2),) * 2, {"grad_reduce": "max"}, "grad_reduce must be 'mean'.*got 'max'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Tensor, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nt_xent(*arguments, **options)
