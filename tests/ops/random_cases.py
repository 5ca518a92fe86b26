"""One small random case of any op from one integer: sizes from 0, dtypes, options, layouts, zero and aligned rows.

python -m tests.ops.random_cases SEED ...      runs these cases alone
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast import (
    barlow_twins,
    byol_loss,
    clip_loss,
    dcl,
    dino_loss,
    ibot_loss,
    info_nce,
    knn_topk,
    koleo,
    nt_xent,
    siglip_loss,
    simsiam_loss,
    sinkhorn,
    supcon,
    swav_loss,
    vicreg,
)
from ssl_fast.ops.barlow_twins import barlow_twins_reference
from ssl_fast.ops.byol import byol_reference
from ssl_fast.ops.clip_loss import clip_loss_reference
from ssl_fast.ops.contract import widened
from ssl_fast.ops.dcl import dcl_reference
from ssl_fast.ops.info_nce import info_nce_reference
from ssl_fast.ops.knn_topk import knn_topk_reference
from ssl_fast.ops.koleo import koleo_reference
from ssl_fast.ops.nt_xent import nt_xent_reference
from ssl_fast.ops.partial_fc import sample_classes
from ssl_fast.ops.siglip_loss import siglip_loss_reference
from ssl_fast.ops.sinkhorn import sinkhorn_reference
from ssl_fast.ops.supcon import supcon_reference
from ssl_fast.ops.vicreg import vicreg_reference
from tests.ops.conftest import Checker, usable
from tests.ops.margin_cases import LOSSES
from tests.ops.random_draw import REDUCTIONS, Draw
from tests.ops.random_steps import STEPS

ROUNDINGS = 16  # what luck may add for the unluckiest of 10,000 cases


@dataclass
class Case:
    """`ours(*rows, **named, **options, impl=...)` is to be `reference(*rows, **named, **options)`."""

    op: str  # of `backends()`
    ours: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    rows: list[Tensor]  # float64
    named: dict[str, Tensor] = field(default_factory=dict)  # float64
    options: dict[str, Any] = field(default_factory=dict)
    # The float64 result's own error: numbers of 1e5 are added up (1 / temperature^2 for each row), and may cancel.
    floor: float = 1e-10


def nt_xent_case(d: Draw) -> Case:
    views = d.views(d.pick(2, 2, 3, 4), d.size(), d.size())

    def reference(z1: Tensor, z2: Tensor, *more: Tensor, **options: Any) -> Tensor:
        return nt_xent_reference(z1, z2, views=more, **options)

    return Case("nt_xent", nt_xent, reference, views, *d.common(len(views[0])))


def supcon_case(d: Draw) -> Case:
    num_samples, views = d.size(), d.pick(0, 0, 1, 2, 3)
    z = d.rows(num_samples, d.size()) if views == 0 else d.rows(num_samples, views, d.size())
    labels = d.labels(d.pick(1, 2, 3, 10), num_samples)
    labels = torch.where(d.uniform(num_samples) < d.pick(0, 0.3), -7, labels)
    base = d.pick(None, None, 0.07)

    def ours(z: Tensor, **options: Any) -> Tensor:
        return supcon(z, labels, base_temperature=base, ignore_index=-7, **options)

    def reference(z: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
        each = z.shape[1] if views else 1
        weight = None if weight is None else weight.repeat_interleave(each)
        options |= {"ignore_index": -7, "weight": weight}
        loss = supcon_reference(z.flatten(0, -2), labels.repeat_interleave(each), **options)
        loss = loss.view(z.shape[:-1]) if options["reduction"] == "none" else loss
        return loss if base is None else loss * (options["temperature"] / base)

    return Case("supcon", ours, reference, [z], *d.common(num_samples))


def dcl_case(d: Draw) -> Case:
    views = d.views(2, d.size(), d.size())
    named, options = d.common(len(views[0]))
    return Case("dcl", dcl, dcl_reference, views, named, options | {"sigma": d.pick(None, None, 0.5)})


def info_nce_case(d: Draw) -> Case:
    q, k = d.views(2, d.size(), d.size())
    if d.pick(True, False):
        return Case("clip_loss", info_nce, info_nce_reference, [q, k], *d.common(len(q)))
    named, options = d.common(len(q))
    queue = d.rows(d.size(), q.shape[1], unit=True).detach()
    if d.pick(True, False):
        return Case("info_nce", info_nce, info_nce_reference, [q, k, queue], named, options)
    options["queue"] = queue.bfloat16()
    return Case("info_nce", info_nce, info_nce_reference, [q, k], named, options)


def clip_loss_case(d: Draw) -> Case:
    towers = d.views(2, d.size(), d.size())
    return Case("clip_loss", clip_loss, clip_loss_reference, towers, *d.common(len(towers[0]), "logit_scale"))


def siglip_loss_case(d: Draw) -> Case:
    towers = d.views(2, d.size(), d.size())
    named, options = d.common(len(towers[0]), "logit_scale")
    bias = torch.tensor(d.pick(-10.0, 0.0, 2.0), dtype=torch.float64)
    if d.pick(True, False):
        named["logit_bias"] = bias.requires_grad_()
    else:
        options["logit_bias"] = bias.item()
    return Case("siglip_loss", siglip_loss, siglip_loss_reference, towers, named, options)


def _averaged(rows: Tensor, weight: Tensor | None, reduction: str, total: Tensor | float) -> Tensor:
    rows = rows if weight is None else rows * weight
    return rows if reduction == "none" else rows.sum() / (1 if reduction == "sum" else total + (total == 0))


def _assignments(logits: Tensor, temperature: float, center: Tensor | str | None) -> Tensor:
    """Of rows [M, K]."""
    if isinstance(center, str):
        return sinkhorn_reference(logits, temperature=temperature) if len(logits) else logits
    logits = logits if center is None else logits - center.to(logits.dtype)
    return (logits / temperature).softmax(-1)


def prototypes_case(d: Draw) -> Case:
    """dino_loss, ibot_loss or swav_loss, of logits or of rows and prototypes."""
    kind, num_samples, num_prototypes = d.pick("dino", "ibot", "swav"), d.size(), d.size(1)
    num_student, num_teacher = (1, 1) if kind == "ibot" else (d.pick(2, 3, 5), d.pick(1, 2))
    by_rows, unit = d.pick(True, False), d.pick(True, False)
    dim = d.size() if by_rows else num_prototypes
    student, teacher = d.rows(num_student, num_samples, dim), d.rows(num_teacher, num_samples, dim).detach()
    weights = [d.rows(num_prototypes, dim), d.rows(num_prototypes, dim).detach()] if by_rows else []
    center = "sinkhorn" if kind == "swav" else d.pick(None, "sinkhorn", d.normal(num_prototypes))
    masks = d.uniform(3, num_samples) < 0.4
    named = {} if kind == "ibot" else {k: w.detach() for k, w in d.weight(num_samples).items()}
    options = {"reduction": d.pick(*REDUCTIONS)}
    low, high = {"dino": (0.04, 0.1), "ibot": (0.07, 0.2), "swav": (0.05, 0.1)}[kind]
    if kind == "ibot":
        count = int(masks.sum())
        student, teacher = d.rows(1, count, dim), d.rows(1, count, dim).detach()
    views = [student] if kind == "swav" else [student, teacher]
    weights = weights[:1] if kind == "swav" else weights

    def ours(*tensors: Tensor, impl: str, **options: Any) -> Tensor:
        if by_rows or impl != "cpp":
            options |= {"impl": impl}
        options |= {"normalize_prototypes": unit}
        if kind == "swav":
            return swav_loss(*tensors, num_assign=num_teacher, temperature=high, epsilon=low, **options)
        options |= {"student_temperature": high, "teacher_temperature": low, "center": center}
        if kind == "dino":
            return dino_loss(*tensors, **options)
        return ibot_loss(tensors[0][0], tensors[1][0], masks, *tensors[2:], **options)

    def reference(student: Tensor, *tensors: Tensor, weight: Tensor | None = None, reduction: str) -> Tensor:
        teacher = student[:num_teacher] if kind == "swav" else tensors[0]
        if by_rows:
            w, wt = (tensors[0], tensors[0]) if kind == "swav" else tensors[1:]
            w, wt = (F.normalize(w, dim=1, eps=1e-12), F.normalize(wt, dim=1, eps=1e-12)) if unit else (w, wt)
            student, teacher = student @ w.T, teacher @ wt.T
        teacher = teacher.detach()
        batches = teacher if kind == "swav" else teacher.flatten(0, 1)[None]
        p = torch.cat([_assignments(batch, low, center) for batch in batches]).view(teacher.shape)
        loss = -torch.einsum("tnk,snk->tsn", p, (student / high).log_softmax(-1))
        if kind != "ibot":
            different = 1 - torch.eye(len(teacher), len(student), dtype=loss.dtype)
            rows = (loss * different[..., None]).sum((0, 1)) / different.sum()
            return _averaged(rows, weight, reduction, len(rows) if weight is None else weight.sum())
        shares = (1 / masks.sum(1, keepdim=True).clamp_min(1)).expand_as(masks)[masks]
        return _averaged(loss[0, 0], shares.to(loss.dtype), reduction, len(masks))

    op = "prototypes" if by_rows else "prototype_logits"
    return Case(op, ours, reference, views + weights, named, options)


def sinkhorn_case(d: Draw) -> Case:
    logits = d.rows(d.size(1), d.size(1)).detach()
    options = {"temperature": d.pick(0.05, 0.5), "iterations": d.pick(1, 3, 10)}
    return Case("sinkhorn", sinkhorn, sinkhorn_reference, [logits], {}, options)


def koleo_case(d: Draw) -> Case:
    # Two dimensions at least: on a line all rows coincide, and which one is nearest is nobody's choice.
    x, options = d.rows(d.size(), d.pick(0, d.size(2))), {"reduction": d.pick(*REDUCTIONS)}
    return Case("koleo", koleo, koleo_reference, [x], {}, options)


def margin_case(d: Draw) -> Case:
    name, num_rows, num_classes, dim = d.pick(*LOSSES), d.size(), d.size(1), d.size()
    op, reference = LOSSES[name]
    normalize, centres, rate = d.pick(True, True, False), d.pick(1, 1, 3), d.pick(1.0, 1.0, 0.3)
    shape = (num_classes, dim) if centres == 1 else (num_classes, centres, dim)
    x, weight = d.rows(num_rows, dim, unit=not normalize), d.rows(*shape, unit=not normalize)
    labels = torch.where(d.uniform(num_rows) < d.pick(0, 0.3), -9, d.labels(num_classes, num_rows))
    named, scale = {}, d.pick(4.0, 16.0, 64.0)
    options = {"reduction": d.pick(*REDUCTIONS), "normalize": normalize}
    if d.pick(True, False):
        named["scale"] = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    else:
        options["scale"] = scale
    seed = d.random.randrange(2**31)

    def ours(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        options |= {"sample_rate": rate, "generator": torch.Generator().manual_seed(seed)}
        return op(x, weight, labels, ignore_index=-9, **options)

    def sampled(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        target, kept = labels.masked_fill(labels == -9, -1), slice(None)
        if rate < 1:
            kept, target = sample_classes(target, num_classes, rate, torch.Generator().manual_seed(seed))
        return reference(x, weight[kept], target, ignore_index=-1, **options)

    # On a line the angle is 0 or pi, where the slope of the margin is 7e5 in float64, and no gradient is left of it.
    return Case("margin_softmax", ours, sampled, [x, weight], named, options, 1e-7 if dim < 2 else 1e-10)


def byol_case(d: Draw) -> Case:
    p, z = d.views(2, d.size(), d.size())
    options = {"normalize": d.pick(True, False), "reduction": d.pick(*REDUCTIONS)}
    return Case("byol", byol_loss, byol_reference, [p, z.detach()], d.weight(len(p)), options)


def simsiam_case(d: Draw) -> Case:
    p, z = d.views(2, d.size(), d.size())

    def reference(p: Tensor, z: Tensor, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
        rows = byol_reference(p, z, reduction="none") / 2 - 1
        return _averaged(rows, weight, reduction, len(rows) if weight is None else weight.sum())

    options = {"reduction": d.pick(*REDUCTIONS)}
    return Case("byol", simsiam_loss, reference, [p, z.detach()], d.weight(len(p)), options)


def vicreg_case(d: Draw) -> Case:
    options = {"variance": d.pick(25.0, 12.5), "covariance": d.pick(1.0, 20.0), "gamma": d.pick(1.0, 0.3)}
    return Case("vicreg", vicreg, vicreg_reference, d.views(2, d.size(), d.size(1)), {}, options)


def barlow_twins_case(d: Draw) -> Case:
    options = {"lambd": d.pick(0.0051, 1.0), "eps": d.pick(1e-5, 1e-3)}
    return Case("barlow_twins", barlow_twins, barlow_twins_reference, d.views(2, d.size(), d.size(1)), {}, options)


def knn_topk_case(d: Draw) -> Case:
    """The values, and those of the rows whose numbers are given: equal ones may change places by a rounding."""
    dim = d.size()
    queries, gallery = d.rows(d.size(), dim).detach(), d.rows(d.size(1), dim).detach()
    k, metric = d.random.randint(1, len(gallery)), d.pick("cosine", "l2", "dot")

    def both(found: tuple[Tensor, Tensor], queries: Tensor, gallery: Tensor) -> Tensor:
        values, order = knn_topk_reference(queries.double(), gallery.double(), len(gallery), metric=metric)
        return torch.stack((found[0].double(), torch.empty_like(values).scatter(1, order, values).gather(1, found[1])))

    def ours(q: Tensor, g: Tensor, impl: str) -> Tensor:
        return both(knn_topk(q, g, k, metric=metric, impl=impl), q, g)

    return Case(
        "knn_topk", ours, lambda q, g: both(knn_topk_reference(q, g, k, metric=metric), q, g), [queries, gallery]
    )


CASES: dict[str, Callable[[Draw], Case]] = {
    "nt_xent": nt_xent_case,
    "supcon": supcon_case,
    "dcl": dcl_case,
    "info_nce": info_nce_case,
    "clip_loss": clip_loss_case,
    "siglip_loss": siglip_loss_case,
    "prototypes": prototypes_case,
    "sinkhorn": sinkhorn_case,
    "koleo": koleo_case,
    "margins": margin_case,
    "byol": byol_case,
    "simsiam": simsiam_case,
    "vicreg": vicreg_case,
    "barlow_twins": barlow_twins_case,
    "knn_topk": knn_topk_case,
}
NAMES = (*CASES, *STEPS)


def run(seed: int) -> None:
    """Draws the case of this seed and judges all implementations; AssertionError says what is wrong."""
    draw, name = Draw(seed), NAMES[seed % len(NAMES)]
    if name in STEPS:
        STEPS[name](draw)
        return
    case = CASES[name](draw)
    inputs, count = [*case.rows, *case.named.values()], len(case.rows)
    layouts = [draw.layout() for _ in case.rows]

    def call(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], **options: Any) -> Tensor:
        named = dict(zip(case.named, tensors[count:], strict=True))
        return function(*tensors[:count], **named, **case.options, **options)

    def reference(*tensors: Tensor) -> Tensor:
        # Stricter than the house rule: with fp32 accumulation, as the ops promise. In fp16 plain torch would overflow.
        return call(case.reference, tuple(map(widened, tensors)))

    shape = reference(*(t.detach() for t in inputs)).shape
    # As a loss scale below 1 does: fp16 ends at 65504.
    upstream = (draw.uniform(*shape) + 0.5) * (0.01 if draw.dtype == torch.float16 else 1)
    for impl in usable(case.op):

        def ours(*tensors: Tensor, impl: str = impl) -> Tensor:
            laid_out = (layout(t) for layout, t in zip(layouts, tensors, strict=False))
            return call(case.ours, (*laid_out, *tensors[count:]), impl=impl)

        settings = (ours, reference, inputs, draw.dtype, "cpu", upstream)
        try:
            try:
                Checker().against(*settings, floor=case.floor)
            except AssertionError:
                Checker(ROUNDINGS).against(*settings, floor=case.floor, neighbours=20)
        except Exception as error:
            sizes = ", ".join(str(list(t.shape)) for t in inputs)
            raise AssertionError(f"{name} {impl} of {sizes} with {case.options}: {error!r}") from error


def failures(seeds: range) -> list[str]:
    """What is wrong, by seed."""
    found = []
    for seed in seeds:
        try:
            run(seed)
        except Exception as error:
            found.append(f"seed {seed}, {NAMES[seed % len(NAMES)]}: {error!r}")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number in map(int, sys.argv[1:]):
        print("\n".join(failures(range(number, number + 1)) or [f"seed {number}: as it should be"]))
