"""nt_xent and info_nce, forward and backward, beside lightly, the plain forms and our reference, interleaved.

    python -m benchmarks.ops.bench_contrastive --threads 2

Times, memory and floor: `measure.py`. The error is that of the gradient against float64, norm-wise (of inputs as they
were before any rounding to bf16); none is stated for lightly's memory bank, which changes with every call. The floor's
arithmetic is 4 R^2 D for nt_xent over R rows, 4 B K D for info_nce.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.measure import Judge, Op, Step, against, differentiate, run
from ssl_fast import info_nce, nt_xent

DIM, TEMPERATURE = 128, 0.1


def aligned(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views whose embeddings agree as those of a half-trained network do (cosine about 0.7)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, DIM, generator=generator)
    return z, 0.7 * z + 0.7 * torch.randn(rows, DIM, generator=generator)


def nt_xent_contenders(samples: int) -> dict[str, Step]:
    from lightly.loss import NTXentLoss

    z1, z2 = aligned(samples)
    lightly = NTXentLoss(temperature=TEMPERATURE)
    return {
        "ssl_fast cpp": differentiate(lambda a, b: nt_xent(a, b, temperature=TEMPERATURE, impl="cpp"), z1, z2),
        "ssl_fast cpp bf16 input": differentiate(
            lambda a, b: nt_xent(a, b, temperature=TEMPERATURE, impl="cpp"), z1.bfloat16(), z2.bfloat16()
        ),
        "ssl_fast reference": differentiate(
            lambda a, b: nt_xent(a, b, temperature=TEMPERATURE, impl="reference"), z1, z2
        ),
        "lightly NTXentLoss": differentiate(lightly, z1, z2),
    }


def concatenated(q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    """MoCo's own form: logits [B, 1 + K], then cross-entropy with label 0 (He et al. 2019, Algorithm 1)."""
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1).detach()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def info_nce_contenders(batch: int, size: int) -> dict[str, Step]:
    from lightly.loss import NTXentLoss

    q, k = aligned(batch)
    queue = F.normalize(torch.randn(size, DIM, generator=torch.Generator().manual_seed(1)), dim=1)

    def ours(rows: Tensor) -> Callable[..., Tensor]:
        return lambda a, b: info_nce(a, b.detach(), rows, temperature=TEMPERATURE, impl="cpp")

    lightly = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(size, DIM))
    return {
        "ssl_fast cpp, fp32 queue": differentiate(ours(queue), q, k),
        "ssl_fast cpp, bf16 queue": differentiate(ours(queue.bfloat16()), q, k),
        "concatenated logits": differentiate(lambda a, b: concatenated(a, b, queue), q, k),
        "lightly NTXentLoss, memory bank": differentiate(lambda a, b: lightly(a, b.detach()), q, k),
    }


def judge_nt_xent(samples: int) -> Judge:
    z1, z2 = (z.double() for z in aligned(samples))
    return against(differentiate(lambda a, b: nt_xent(a, b, temperature=TEMPERATURE, impl="reference"), z1, z2)())


def judge_info_nce(batch: int, size: int) -> Judge:
    q, k = (z.double() for z in aligned(batch))
    queue = F.normalize(torch.randn(size, DIM, generator=torch.Generator().manual_seed(1)), dim=1).double()
    judge = against(differentiate(lambda a, b: concatenated(a, b, queue), q, k)())
    return lambda name, found: "" if name.startswith("lightly") else judge(name, found)


CONTENDERS = {
    "nt_xent": Op(
        contenders=nt_xent_contenders,
        sizes=[(512,), (2048,), (4096,)],
        small=(512,),
        more=(DIM,),
        judge=judge_nt_xent,
        flop=lambda samples: 4 * (2 * samples) ** 2 * DIM,
    ),
    "info_nce": Op(
        contenders=info_nce_contenders,
        sizes=[(256, 65536)],
        small=(256, 8192),
        more=(DIM,),
        judge=judge_info_nce,
        flop=lambda batch, size: 4 * batch * size * DIM,
    ),
}


if __name__ == "__main__":
    run(__doc__, "ops_contrastive_cpu", CONTENDERS, ("lightly",), error="gradient_error")
