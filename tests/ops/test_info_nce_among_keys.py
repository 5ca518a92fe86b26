"""InfoNCE without a queue: MoCo v3's loss, each query against the keys of the batch."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import InfoNCELoss, clip_loss, info_nce
from ssl_fast.ops.info_nce import info_nce_reference
from tests.ops.towers import number, towers

OP = "clip_loss"  # whose kernels run it, in one direction
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def paper(q: Tensor, k: Tensor, tau: float) -> Tensor:
    """`ctr` of Algorithm 1 of the paper, line by line; q and k are normalised by the projector's caller."""
    logits = q @ k.T / tau  # [N, N] pairs
    labels = torch.arange(len(q))
    loss = F.cross_entropy(logits, labels)
    return 2 * tau * loss


def test_the_pseudocode_of_the_paper(impl: str, device: str) -> None:
    q, k = (F.normalize(z.detach()) for z in towers(70, 16))
    for tau in (0.07, 0.2, 1.0):
        expected = paper(q, k, tau)
        torch.testing.assert_close(2 * tau * info_nce_reference(q, k, temperature=tau), expected)
        value = 2 * tau * info_nce(q.to(device).float(), k.to(device).float(), temperature=tau, impl=impl)
        assert value.item() == pytest.approx(expected.item(), rel=2e-6)


def test_a_number_worked_by_hand(impl: str, device: str) -> None:
    eye = torch.eye(4, device=device)
    expected = math.log(math.exp(2) + 3) - 2
    assert info_nce(2 * eye, 3 * eye, temperature=0.5, impl=impl).item() == pytest.approx(expected, rel=1e-6)


def test_both_directions_are_clip(impl: str, device: str) -> None:
    q, k = (z.detach().float().to(device).requires_grad_() for z in towers(210, 16))
    both = (info_nce(q, k, temperature=0.1, impl=impl) + info_nce(k, q, temperature=0.1, impl=impl)) / 2
    clip = clip_loss(q, k, 10.0, impl=impl)
    torch.testing.assert_close(both, clip)
    torch.testing.assert_close(torch.autograd.grad(both, (q, k)), torch.autograd.grad(clip, (q, k)))


def test_the_keys_of_the_batch_as_a_queue() -> None:
    """The queue's form counts the positive beside the queue: a queue of the other keys gives the same row."""
    q, k = (F.normalize(z.detach()) for z in towers(6, 5))
    rows = info_nce(q, k, reduction="none")
    for i in range(6):
        others = torch.cat((k[:i], k[i + 1 :]))
        torch.testing.assert_close(info_nce(q[i : i + 1], k[i : i + 1], others), rows[i])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (33, 7), (1, 5), (200, 65)], ids=str)
def test_value_and_gradients_by_the_rule(  # type: ignore[no-untyped-def]
    shape: tuple[int, int], dtype: torch.dtype, impl: str, device: str, checker
) -> None:
    weight = torch.rand(shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(3)).add(0.1)
    inputs = (*towers(*shape), number(0.2), weight.requires_grad_())
    for reduction in ("mean", "sum", "none"):

        def ours(q: Tensor, k: Tensor, t: Tensor, w: Tensor, reduction: str = reduction) -> Tensor:
            return info_nce(q, k, temperature=t, weight=w, reduction=reduction, impl=impl)

        def theirs(q: Tensor, k: Tensor, t: Tensor, w: Tensor, reduction: str = reduction) -> Tensor:
            return info_nce_reference(q, k, temperature=t, weight=w, reduction=reduction)

        rows = torch.rand(shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        checker.against(ours, theirs, inputs, dtype, device, rows if reduction == "none" else torch.tensor(3.0))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(reduction: str, impl: str) -> None:
    if impl == "triton":
        pytest.skip("the Triton kernels have no float64")

    def function(q: Tensor, k: Tensor, t: Tensor) -> Tensor:
        return info_nce(q, k, temperature=t, reduction=reduction, impl=impl)

    assert torch.autograd.gradcheck(function, (*towers(4, 3), number(0.4)))
    assert torch.autograd.gradgradcheck(function, (*towers(4, 3), number(0.4)))


def test_compiled_in_one_graph(impl: str, device: str) -> None:
    torch._dynamo.reset()
    q, k = (z.detach().float().to(device).requires_grad_() for z in towers(12, 8))
    inputs = (q, k, number(0.3, torch.float32).to(device))

    def function(q: Tensor, k: Tensor, t: Tensor) -> Tensor:
        return info_nce(q * 2, k, temperature=t, impl=impl).square()

    value, expected = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs), function(*inputs)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


def test_transform_of_torch_func() -> None:
    q, k = (z.detach() for z in towers(5, 3))
    expected = torch.autograd.functional.jacobian(lambda a: info_nce_reference(a, k), q)
    torch.testing.assert_close(torch.func.grad(lambda a: info_nce(a, k))(q), expected)


def test_module_is_the_function(impl: str, device: str) -> None:
    q, k = (z.detach().float().to(device) for z in towers(6, 4))
    assert torch.equal(InfoNCELoss(temperature=0.3, impl=impl)(q, k), info_nce(q, k, temperature=0.3, impl=impl))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(3), torch.ones(3)), {}, r"q must be floating point of shape \[N, D\].*\[3\]"),
        ((torch.ones(3, 2), torch.ones(4, 2)), {}, r"k must have the shape.*of q.*got \[4, 2\]"),
        ((torch.ones(3, 2),) * 2, {"temperature": -1}, "temperature must be positive, got -1"),
        ((torch.ones(3, 2),) * 2, {"weight": torch.ones(2)}, r"weight must be.*\[3\].*\[2\]"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Tensor, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        info_nce(*arguments, **options)
