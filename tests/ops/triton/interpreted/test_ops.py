"""The public ops on the Triton kernels: autograd, reductions and a learned temperature, against the reference."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.info_nce import info_nce
from ssl_fast.ops.nt_xent import nt_xent


def _nt_xent(impl: str, x: Tensor, tau: Tensor, reduction: str) -> Tensor:
    return nt_xent(*x, temperature=tau, impl=impl, reduction=reduction)


def _info_nce(impl: str, x: Tensor, tau: Tensor, reduction: str) -> Tensor:
    queue = F.normalize(torch.randn(50, x.shape[2], generator=torch.Generator().manual_seed(3)), dim=1)
    return info_nce(*x, queue.bfloat16(), temperature=tau, impl=impl, reduction=reduction)


@pytest.mark.parametrize("op", [_nt_xent, _info_nce])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_op_equals_reference(op, reduction: str) -> None:
    results = []
    for impl in ("triton", "reference"):
        x = torch.randn(2, 20, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        tau = torch.tensor(0.1, requires_grad=True)
        value = op(impl, x, tau, reduction)
        value.mul(torch.linspace(0.5, 1.5, value.numel()).view(value.shape)).sum().backward()
        results.append((value.detach(), x.grad, tau.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=2e-5, atol=2e-6)
