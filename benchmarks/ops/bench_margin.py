"""arcface over many classes, forward and backward, beside pytorch-metric-learning and insightface's arithmetic.

    python -m benchmarks.ops.bench_margin --threads 2

Times, memory and floor as in `bench_contrastive`; the error is that of the gradients of x and weight together against
float64. The floor is 6 N C D. "insightface's arithmetic" is what its ArcFace head does to the logits (all cosines
clamped, the target's angle moved, the arccosine and cosine of all of them, scale, cross-entropy), written anew.
"""

import argparse
import gc
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.bench_contrastive import Step, interleaved, matmul_rate, peak_memory
from benchmarks.record import write
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
    cosine = (F.normalize(x) @ F.normalize(weight).T).clamp(-1 + 1e-7, 1 - 1e-7)
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


def exact(rows: int, classes: int) -> Tensor:
    x, weight, labels = inputs(rows, classes)
    return differentiate(arcface_reference, x.double(), weight.double(), labels)()


def measure(rows: int, classes: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    steps, truth = contenders(rows, classes), exact(rows, classes)
    times = interleaved(steps, rounds)
    floor = 6 * rows * classes * DIM / matmul_rate() * 1e3
    found = []
    for name, values in times.items():
        cut = statistics.quantiles(values, n=5)
        # Other margins and centres have other gradients: no error to state.
        same = "CosFace" not in name and "Sub" not in name and "sub" not in name
        error = f"{((steps[name]().double() - truth).norm() / truth.norm()).item():.1e}" if same else ""
        row = {"op": "arcface", "provider": name, "sizes": f"{rows}x{classes}x{DIM}", "direction": "forward+backward"}
        row |= {"p20_ms": round(cut[0], 2), "p50_ms": round(statistics.median(values), 2), "p80_ms": round(cut[-1], 2)}
        row |= {"extra_mb": round(peak_memory(contenders, (rows, classes), name, threads), 1), "gradient_error": error}
        row |= {"floor_ms": round(floor, 1), "threads": threads}
        print(row, flush=True)
        found.append(row)
        gc.collect()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dry", action="store_true", help="one size, and nothing is written")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(512, 10000, args.rounds, args.threads)
    if args.dry:
        return
    rows += measure(512, 100000, args.rounds, args.threads)
    write("ops_margin_cpu", rows, ("pytorch-metric-learning",))


if __name__ == "__main__":
    main()
