"""The losses spelled out in plain torch, in the dtype of their inputs: the yardstick of the kernels' tests."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

# The interpreter takes a second for what a GPU does in microseconds: fp16, which takes bf16's way, is for the night.
DTYPES = [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.nightly)]


def nt_xent(
    x: Tensor,  # [N, D]
    positive: Tensor,  # [N] int64
    coef: Tensor,  # [N]
    inv_temperature: float,
    normalize: bool,
) -> dict[str, Tensor]:
    """Loss and log-normaliser [N], d sum(coef loss) / dx [N, D] and / d inv_temperature []."""
    x = x.detach().requires_grad_()
    inv = x.new_tensor(inv_temperature).requires_grad_()
    z = F.normalize(x, dim=1, eps=1e-12) if normalize else x
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    s = (z @ z.T * inv).masked_fill(itself, -torch.inf)
    log_l = s.logsumexp(1)
    loss = _loss(s, log_l, positive)
    dx, dinv = torch.autograd.grad((loss * coef.to(x.dtype)).sum(), (x, inv))
    return {"loss": loss.detach(), "log_l": log_l.detach(), "dx": dx, "dinv": dinv}


def info_nce(
    q: Tensor,  # [B, D]
    k: Tensor,  # [B, D]
    queue: Tensor,  # [K, D]
    inv_temperature: float,
    normalize: bool,
) -> dict[str, Tensor]:
    """Loss [B] and each row's gradient with respect to q, k [B, D] and inv_temperature [B]."""
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    inv = q.new_full((len(q),), inv_temperature).requires_grad_()
    a, b = (F.normalize(t, dim=1, eps=1e-12) if normalize else t for t in (q, k))
    logits = torch.cat(((a * b).sum(1, keepdim=True), a @ queue.to(q.dtype).T), 1) * inv[:, None]
    loss = _loss(logits, logits.logsumexp(1), torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
    dq, dk, dinv = torch.autograd.grad(loss.sum(), (q, k, inv))
    return {"loss": loss.detach(), "dq": dq, "dk": dk, "dinv": dinv}


def _loss(s: Tensor, log_l: Tensor, positive: Tensor) -> Tensor:
    """log_l - s_positive; in float64, the truth, without the difference of numbers that may be all but equal."""
    own = s.gather(1, positive[:, None]).squeeze(1)
    if s.dtype != torch.float64:
        return log_l - own
    return F.softplus(s.scatter(1, positive[:, None], -torch.inf).logsumexp(1) - own, threshold=40)


def check_rule(ours: Tensor, exact: Tensor, reference: Tensor, name: str, roundings: float = 1) -> None:
    """Error <= 2 x the reference's own in its dtype + roundings of the largest value; maximum and norm-wise."""
    eps = roundings * torch.finfo(reference.dtype).eps * exact.abs().max()
    error, allowed = (ours.double() - exact).abs(), (reference.double() - exact).abs()
    assert error.max() <= 2 * allowed.max() + eps, f"{name}: {error.max():.3e} against {allowed.max():.3e} + {eps:.1e}"
    scale = eps * exact.numel() ** 0.5
    assert error.norm() <= 2 * allowed.norm() + scale, (
        f"{name}: {error.norm():.3e} against {allowed.norm():.3e} norm-wise"
    )


def views(
    pairs: int, dim: int, aligned: float, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Two views of `pairs` samples with an expected cosine of about `aligned`: x [N, D], positive [N], coef [N]."""
    generator = torch.Generator().manual_seed(seed)
    first = F.normalize(torch.randn(pairs, dim, generator=generator), dim=1)
    noise = F.normalize(torch.randn(pairs, dim, generator=generator), dim=1)
    second = aligned * first + (1 - aligned**2) ** 0.5 * noise
    lengths = 0.5 + torch.rand(2 * pairs, 1, generator=generator)
    x = torch.cat((first, second)) * lengths
    coef = torch.rand(2 * pairs, generator=generator) / pairs
    positive = torch.arange(2 * pairs).roll(pairs)
    return x.to(device, dtype), positive.to(device), coef.to(device)
