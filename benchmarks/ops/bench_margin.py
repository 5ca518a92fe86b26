"""arcface over many classes, forward and backward, beside pytorch-metric-learning and insightface's arithmetic.

    python -m benchmarks.ops.bench_margin --threads 2

Times, memory and floor: `measure.py`; the error is that of the gradients of x and weight together against
float64. The floor is 6 N C D. "insightface's arithmetic" is what its ArcFace head does to the logits (all cosines
clamped, the target's angle moved, the arccosine and cosine of all of them, scale, cross-entropy), written anew.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.measure import Judge, Op, Step, against, run
from ssl_fast import arcface
from ssl_fast.ops.arcface import arcface_reference

DIM, SCALE, MARGIN = 512, 64.0, 0.5
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def inputs(rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings half way to their class (cosine about 0.5), class centres, labels."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, DIM, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    return weight[labels] + 1.7 * torch.randn(rows, DIM, generator=generator), weight, labels


def three_centres(weight: Tensor) -> Tensor:
    """[C, 3, D], the first of which is weight's."""
    others = torch.randn(len(weight), 2, DIM, generator=torch.Generator().manual_seed(1))
    return torch.cat((weight[:, None], others), 1)


def insightface(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    cosine = (F.normalize(x) @ F.normalize(weight).T).float().clamp(-1 + 1e-7, 1 - 1e-7)
    own = torch.zeros_like(cosine).scatter_(1, labels[:, None], MARGIN)
    return F.cross_entropy((cosine.acos() + own).cos() * SCALE, labels)


def differentiate(loss: Loss, x: Tensor, weight: Tensor, labels: Tensor) -> Step:
    def step() -> Tensor:
        leaves = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
        loss(*leaves, labels).backward()
        return torch.cat([leaf.grad.reshape(-1, DIM) for leaf in leaves if leaf.grad is not None])

    return step


def contenders(rows: int, classes: int) -> dict[str, Step]:
    from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss, SubCenterArcFaceLoss

    x, weight, labels = inputs(rows, classes)

    def pml(module: Any, **options: Any) -> Step:
        peer = module(num_classes=classes, embedding_size=DIM, scale=SCALE, **options)
        if peer.W.shape[1] == classes:
            peer.W.data = weight.T.clone()

        def step() -> Tensor:
            leaf, peer.W.grad = x.clone().requires_grad_(), None
            peer(leaf, labels).backward()
            assert leaf.grad is not None
            return torch.cat((leaf.grad, peer.W.grad.T))

        return step

    def ours(impl: str) -> Loss:
        return lambda a, b, y: arcface(a, b, y, impl=impl)

    return {
        "ssl_fast cpp": differentiate(ours("cpp"), x, weight, labels),
        "ssl_fast cpp, 3 sub-centres": differentiate(ours("cpp"), x, three_centres(weight), labels),
        "ssl_fast reference, in panels": differentiate(ours("reference"), x, weight, labels),
        "logits in plain torch": differentiate(arcface_reference, x, weight, labels),
        "insightface's arithmetic": differentiate(insightface, x, weight, labels),
        "PML ArcFaceLoss": pml(ArcFaceLoss, margin=math.degrees(MARGIN)),
        "PML CosFaceLoss": pml(CosFaceLoss),
        "PML SubCenterArcFaceLoss": pml(SubCenterArcFaceLoss, margin=math.degrees(MARGIN)),
    }


def judge(rows: int, classes: int) -> Judge:
    x, weight, labels = inputs(rows, classes)
    error = against(differentiate(arcface_reference, x.double(), weight.double(), labels)())
    # Other margins and centres have other gradients: no error to state.
    return lambda name, found: "" if "CosFace" in name or "Sub" in name or "sub" in name else error(name, found)


CONTENDERS = {
    "arcface": Op(
        contenders=contenders,
        sizes=[(512, 10000), (128, 100000)],
        small=(256, 2000),
        more=(DIM,),
        judge=judge,
        flop=lambda rows, classes: 6 * rows * classes * DIM,
    )
}


if __name__ == "__main__":
    run(__doc__, "ops_margin_cpu", CONTENDERS, ("pytorch-metric-learning",), error="gradient_error")
