"""supcon, dcl and nt_xent of several views, forward and backward, beside pytorch-metric-learning and lightly.

    python -m benchmarks.ops.bench_self_contrast --threads 2

Times, memory and floor: `measure.py`. The rows of supcon are of 100 classes and agree within a class as
those of a half-trained network do (cosine about 0.5); nt_xent's views have a cosine of about 0.7. The floor is the
arithmetic 4 R^2 D over R rows, at the rate of torch's own fp32 product. pytorch-metric-learning's NTXentLoss is not
here: it compares every positive with every negative pair, R^3 bytes (550 GB at 8,192 rows).
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.bench_contrastive import DIM, TEMPERATURE, aligned
from benchmarks.ops.measure import Contenders, Judge, Op, Step, against, differentiate, run
from ssl_fast import dcl, nt_xent, supcon

CLASSES, SIGMA = 100, 0.5


def labelled(rows: int) -> tuple[Tensor, Tensor]:
    """Rows [N, D] around their classes' centres and labels [N]."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    centres = F.normalize(torch.randn(CLASSES, DIM, generator=generator))
    return centres[labels] + F.normalize(torch.randn(rows, DIM, generator=generator)), labels


def supcon_contenders(rows: int) -> dict[str, Step]:
    from pytorch_metric_learning.losses import SupConLoss

    z, labels = labelled(rows)
    theirs = SupConLoss(temperature=TEMPERATURE)
    ours = functools.partial(supcon, labels=labels, temperature=TEMPERATURE)
    return {
        "ssl_fast cpp": differentiate(lambda a: ours(a, impl="cpp"), z),
        "ssl_fast cpp bf16 input": differentiate(lambda a: ours(a, impl="cpp"), z.bfloat16()),
        "ssl_fast reference": differentiate(lambda a: ours(a, impl="reference"), z),
        "pytorch-metric-learning SupConLoss": differentiate(lambda a: theirs(a, labels), z),
    }


def pairs_contenders(samples: int) -> dict[str, Step]:
    from lightly.loss import NTXentLoss

    z1, z2 = aligned(samples)
    return {
        "ssl_fast cpp": differentiate(lambda a, b: nt_xent(a, b, temperature=TEMPERATURE, impl="cpp"), z1, z2),
        "lightly NTXentLoss": differentiate(NTXentLoss(temperature=TEMPERATURE), z1, z2),
    }


def four_views(samples: int) -> tuple[Tensor, ...]:
    """Four views of common samples, each [N, D], with cosines of about 0.5."""
    generator = torch.Generator().manual_seed(0)
    z, *noise = torch.randn(5, samples, DIM, generator=generator)
    return tuple(z + n for n in noise)


def views_contenders(samples: int) -> dict[str, Step]:
    from pytorch_metric_learning.losses import SupConLoss

    views, labels = four_views(samples), torch.arange(samples).repeat(4)
    theirs = SupConLoss(temperature=TEMPERATURE)
    return {
        "ssl_fast cpp": differentiate(lambda *z: nt_xent(*z, temperature=TEMPERATURE, impl="cpp"), *views),
        "pytorch-metric-learning SupConLoss": differentiate(lambda *z: theirs(torch.cat(z), labels), *views),
    }


def dcl_contenders(samples: int, sigma: float | None) -> dict[str, Step]:
    from lightly.loss import DCLLoss, DCLWLoss

    z1, z2 = aligned(samples)
    ours = functools.partial(dcl, temperature=TEMPERATURE, sigma=sigma)
    theirs = DCLLoss(TEMPERATURE) if sigma is None else DCLWLoss(TEMPERATURE, sigma)
    return {
        "ssl_fast cpp": differentiate(lambda a, b: ours(a, b, impl="cpp"), z1, z2),
        "ssl_fast reference": differentiate(lambda a, b: ours(a, b, impl="reference"), z1, z2),
        f"lightly {type(theirs).__name__}": differentiate(theirs, z1, z2),
    }


def judge(op: str, size: int) -> Judge:
    """Against the gradient in float64, by the plain form."""
    z1, z2 = (z.double() for z in aligned(size))
    options: dict[str, Any] = {"temperature": TEMPERATURE, "impl": "reference"}
    if op == "supcon":
        z, labels = labelled(size)
        return against(differentiate(lambda a: supcon(a, labels, **options), z.double())())
    if op == "nt_xent of four views":
        return against(differentiate(lambda *z: nt_xent(*z, **options), *(z.double() for z in four_views(size)))())
    if op == "nt_xent":
        return against(differentiate(lambda a, b: nt_xent(a, b, **options), z1, z2)())
    return against(differentiate(lambda a, b: dcl(a, b, sigma=SIGMA if "weights" in op else None, **options), z1, z2)())


def table(op: str, contenders: Contenders, each: int = 2) -> Op:
    """Sizes in samples, of `each` rows."""
    sizes = [(rows // each,) for rows in (1024, 4096, 8192)]
    return Op(
        contenders=contenders,
        sizes=sizes,
        small=sizes[0],
        more=(DIM,),
        judge=functools.partial(judge, op),
        flop=lambda samples: 4 * (each * samples) ** 2 * DIM,
    )


CONTENDERS = {
    "supcon": table("supcon", supcon_contenders, 1),
    "nt_xent": table("nt_xent", pairs_contenders),
    "nt_xent of four views": table("nt_xent of four views", views_contenders, 4),
    "dcl": table("dcl", functools.partial(dcl_contenders, sigma=None)),
    "dcl with weights": table("dcl with weights", functools.partial(dcl_contenders, sigma=SIGMA)),
}


if __name__ == "__main__":
    packages = ("lightly", "pytorch-metric-learning")
    run(__doc__, "ops_self_contrast_cpu", CONTENDERS, packages, error="gradient_error")
