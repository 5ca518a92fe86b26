"""dino_loss, ibot_loss, swav_loss, sinkhorn and koleo, beside lightly and the plain forms, interleaved.

    python -m benchmarks.ops.bench_distillation --threads 2

The head's last layer is part of what is timed: rows z [N, 256] and prototypes [K, 256] go in, for lightly through
torch's linear layer. Times, memory and floor: `measure.py`; errors are those on a small batch. The arithmetic is that
of the products (2 of the teacher's logits, 6 of the student's for each number of a row and prototype).
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.measure import Contenders, Judge, Op, Step, run
from ssl_fast import dino_loss, ibot_loss, koleo, sinkhorn, swav_loss
from ssl_fast.ops.sinkhorn import sinkhorn_reference

DIM = 256
Loss = Callable[[Tensor, Tensor], Tensor]  # of the student's rows and prototypes


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def step_of(loss: Loss, z: Tensor, w: Tensor) -> Step:
    def step() -> Tensor:
        rows, prototypes = z.clone().requires_grad_(), w.requires_grad_()
        prototypes.grad = None
        loss(rows, prototypes).backward()
        assert rows.grad is not None
        return rows.grad

    return step


def dino_contenders(
    samples: int, num_prototypes: int, views: int, dtype: torch.dtype = torch.float32
) -> dict[str, Step]:
    from lightly.loss import DINOLoss

    z, y = (unit(count, samples, DIM, seed=s).to(dtype) for s, count in ((0, views), (1, 2)))
    w, wt = (unit(num_prototypes, DIM, seed=s).to(dtype) for s in (2, 3))
    lightly = DINOLoss(num_prototypes)

    def ours(impl: str, center: str | None = None) -> Loss:
        return lambda a, b: dino_loss(a, y, b, wt, center=center, impl=impl)

    def theirs(a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            lightly.center.zero_()  # so that every round sees the same loss
            targets = list(F.linear(y, wt))
        return lightly(targets, list(F.linear(a, b)))  # type: ignore[no-any-return]

    return {
        "ssl_fast cpp": step_of(ours("cpp"), z, w),
        "ssl_fast cpp, frozen prototypes": step_of(lambda a, b: ours("cpp")(a, b.detach()), z, w),
        "ssl_fast cpp, sinkhorn": step_of(ours("cpp", "sinkhorn"), z, w),
        "ssl_fast reference": step_of(ours("reference"), z, w),
        "lightly DINOLoss": step_of(theirs, z, w),
    }


def ibot_contenders(
    images: int, num_prototypes: int, tokens: int, dtype: torch.dtype = torch.float32
) -> dict[str, Step]:
    from lightly.loss import IBOTPatchLoss

    masks = torch.zeros(images, 14, 14, dtype=torch.bool)
    masks.view(images, -1)[:, :tokens] = True
    z, y = (unit(images * tokens, DIM, seed=s).to(dtype) for s in (0, 1))
    w, wt = (unit(num_prototypes, DIM, seed=s).to(dtype) for s in (2, 3))
    lightly = IBOTPatchLoss(num_prototypes)

    def theirs(a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            lightly.center.center.zero_()
            targets = F.linear(y, wt)
        return lightly(targets, F.linear(a, b), masks)  # type: ignore[no-any-return]

    return {
        "ssl_fast cpp": step_of(lambda a, b: ibot_loss(a, y, masks, b, wt, impl="cpp"), z, w),
        "lightly IBOTPatchLoss": step_of(theirs, z, w),
    }


def swav_contenders(
    samples: int, num_prototypes: int, views: int, dtype: torch.dtype = torch.float32
) -> dict[str, Step]:
    from lightly.loss import SwaVLoss

    z, w = unit(views, samples, DIM).to(dtype), unit(num_prototypes, DIM, seed=2).to(dtype)
    lightly = SwaVLoss()

    def theirs(a: Tensor, b: Tensor) -> Tensor:
        logits = F.linear(a, b)
        return lightly(list(logits[:2]), list(logits[2:])).sum()  # type: ignore[no-any-return]

    return {
        "ssl_fast cpp": step_of(lambda a, b: swav_loss(a, b, impl="cpp"), z, w),
        "lightly SwaVLoss": step_of(theirs, z, w),
    }


def sinkhorn_contenders(
    samples: int, num_prototypes: int, _: int, dtype: torch.dtype = torch.float32
) -> dict[str, Step]:
    from lightly.loss.swav_loss import sinkhorn as lightly

    logits = (unit(samples, DIM) @ unit(num_prototypes, DIM, seed=2).T).to(dtype)
    return {
        "ssl_fast cpp": lambda: sinkhorn(logits, impl="cpp"),
        "ssl_fast reference": lambda: sinkhorn(logits, impl="reference"),
        "plain exponentials": lambda: sinkhorn_reference(logits),
        "lightly sinkhorn": lambda: lightly(logits),
    }


def koleo_contenders(samples: int, dim: int, _: int, dtype: torch.dtype = torch.float32) -> dict[str, Step]:
    from lightly.loss import KoLeoLoss

    x, nothing = unit(samples, dim).to(dtype), torch.zeros(1)
    lightly = KoLeoLoss()
    return {
        "ssl_fast cpp": step_of(lambda a, _: koleo(a, impl="cpp"), x, nothing),
        "ssl_fast reference": step_of(lambda a, _: koleo(a, impl="reference"), x, nothing),
        "lightly KoLeoLoss": step_of(lambda a, _: lightly(a), x, nothing),
    }


def products(op: str, a: int, b: int, c: int) -> float:
    """FLOP of the matrix products that cannot be avoided."""
    if op == "dino":
        return (2 * 2 + 6 * c) * a * b * DIM
    if op == "ibot":
        return 8 * a * c * b * DIM
    if op == "swav":
        return 6 * c * a * b * DIM
    return 2 * a * a * b if op == "koleo" else 0


def judge(op: str, contenders: Contenders, *sizes: int) -> Judge:
    """The plain form last in the table, in float64, on a batch small enough for it."""
    small = (min(sizes[0], 64), min(sizes[1], 4096), sizes[2])
    truth, found = contenders(*small, dtype=torch.float64), contenders(*small)
    wanted = truth[list(truth)[-1]]()

    def error(name: str, _: Tensor) -> str:
        if op == "dino" and "sinkhorn" in name:
            return ""  # other targets
        return f"{(found[name]() - wanted).norm() / wanted.norm():.1e}"

    return error


def table(op: str, contenders: Contenders, *sizes: tuple[int, int, int]) -> Op:
    return Op(
        contenders=contenders,
        sizes=list(sizes),
        small=(32, 2048, 4),
        judge=functools.partial(judge, op, contenders),
        flop=functools.partial(products, op),
    )


CONTENDERS = {
    "dino": table("dino", dino_contenders, (512, 65536, 2), (64, 65536, 10)),  # samples, prototypes, student's views
    "ibot": table("ibot", ibot_contenders, (32, 65536, 16)),  # images, prototypes, masked tokens of each
    "swav": table("swav", swav_contenders, (256, 3000, 8)),
    "sinkhorn": table("sinkhorn", sinkhorn_contenders, (1024, 65536, 0)),
    "koleo": table("koleo", koleo_contenders, (4096, 256, 0)),
}


if __name__ == "__main__":
    run(__doc__, "ops_distillation_cpu", CONTENDERS, ("lightly",), rounds=5, error="gradient_error")
