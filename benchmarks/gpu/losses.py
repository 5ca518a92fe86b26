"""The losses of the book: inputs, providers (ours, the plain equation, peers) and the work that cannot be avoided.

The floors are those of the algorithms: products that a gradient needs, each pair of rows once where they are symmetric.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ssl_fast as sf
from benchmarks.ops.bench_margin import insightface
from ssl_fast.ops.arcface import arcface_reference
from ssl_fast.ops.barlow_twins import barlow_twins_reference
from ssl_fast.ops.byol import byol_reference
from ssl_fast.ops.clip_loss import clip_loss_reference
from ssl_fast.ops.curricularface import curricularface_reference
from ssl_fast.ops.dcl import dcl_reference
from ssl_fast.ops.dino import dino_reference
from ssl_fast.ops.dispatch import OPS, backends
from ssl_fast.ops.info_nce import info_nce_reference
from ssl_fast.ops.knn_topk import knn_topk_reference
from ssl_fast.ops.koleo import koleo_reference
from ssl_fast.ops.nt_xent import nt_xent_reference
from ssl_fast.ops.siglip_loss import siglip_loss_reference
from ssl_fast.ops.sinkhorn import sinkhorn_reference
from ssl_fast.ops.supcon import supcon_reference
from ssl_fast.ops.vicreg import vicreg_reference

Loss = Callable[..., Tensor]
Maker = Callable[["Draw", tuple[int, ...]], "Problem"]


@dataclass
class Problem:
    """One op at one size. `leaves` want gradients, none: the op has none; a provider takes them, then `others`."""

    kernel: str  # of dispatch.OPS
    ours: Loss  # (*leaves, *others, impl=...)
    equation: Loss  # in plain torch, whole matrix
    leaves: tuple[Tensor, ...]
    others: tuple[Tensor, ...] = ()
    flop: tuple[float, float] = (0.0, 0.0)  # forward; forward and backward
    bytes: tuple[float, float] = (0.0, 0.0)
    cells: int = 0  # of the equation's largest matrix
    peers: dict[str, Callable[[], Loss]] = field(default_factory=dict)  # makers; ImportError: not installed
    differentiable: bool = True

    def implementations(self, device: str) -> dict[str, Loss]:
        """Ours, by implementation, those that can run on this device."""
        fitting = ("triton", "cuda", "reference") if device == "cuda" else ("cpp", "reference")
        there = [i for i in OPS[self.kernel] if i in fitting and backends()[self.kernel][i] == "available"]
        return {f"ssl_fast {impl}": partial(self.ours, impl=impl) for impl in there}

    def run(self, loss: Loss, with_grad: bool, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        """The value, or the gradients of all leaves (of the inputs in another dtype)."""
        leaves, others = (
            [t.detach() if dtype is None or not t.is_floating_point() else t.detach().to(dtype) for t in tensors]
            for tensors in (self.leaves, self.others)
        )
        if not with_grad:
            with torch.no_grad():
                return (loss(*leaves, *others),)
        wanted = [leaf.requires_grad_() for leaf in leaves]
        return torch.autograd.grad(loss(*wanted, *others), wanted)


@dataclass
class Draw:
    """Random rows on a device."""

    device: str
    dtype: torch.dtype

    def __call__(self, *shape: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        return torch.randn(*shape, generator=generator, device=self.device).to(self.dtype)

    def unit(self, *shape: int) -> Tensor:
        return F.normalize(self(*shape).float(), dim=-1).to(self.dtype)

    def views(self, rows: int, dim: int) -> tuple[Tensor, Tensor]:
        """Two views whose rows agree as those of a half-trained network do (cosine about 0.7)."""
        first = self(rows, dim)
        generator = torch.Generator(self.device).manual_seed(1)
        noise = torch.randn(rows, dim, generator=generator, device=self.device)
        return first, (0.7 * first.float() + 0.7 * noise).to(self.dtype)


def _lightly(name: str, **options: Any) -> Callable[[], Loss]:
    def make() -> Loss:
        import lightly.loss

        loss: Loss = getattr(lightly.loss, name)(**options)
        return loss

    return make


def _open_clip(name: str) -> Callable[[], Loss]:
    def make() -> Loss:
        import open_clip.loss

        loss: Loss = getattr(open_clip.loss, name)()
        return loss

    return make


def _metric_learning(classes: int, dim: int, device: str) -> Callable[[], Loss]:
    def make() -> Loss:
        from pytorch_metric_learning.losses import ArcFaceLoss

        peer = ArcFaceLoss(classes, dim, margin=28.6, scale=64).to(device)

        def loss(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            del peer.W  # a parameter; the weight itself is put in its place
            peer.W = weight.T.to(x.dtype)
            return peer(x, labels)

        return loss

    return make


def nt_xent(draw: Draw, sizes: tuple[int, ...]) -> Problem:
    rows, dim = sizes
    work = float(rows * rows * dim)
    return Problem(
        "nt_xent",
        lambda a, b, impl: sf.nt_xent(a, b, temperature=0.1, impl=impl),
        lambda a, b: nt_xent_reference(a, b, 0.1),
        draw.views(rows // 2, dim),
        flop=(work, 4 * work),
        cells=rows * rows,
        peers={"lightly NTXentLoss": _lightly("NTXentLoss", temperature=0.1)},
    )


def dcl(draw: Draw, sizes: tuple[int, ...]) -> Problem:
    rows, dim = sizes
    work = float(rows * rows * dim)
    return Problem(
        "dcl",
        lambda a, b, impl: sf.dcl(a, b, temperature=0.1, impl=impl),
        lambda a, b: dcl_reference(a, b, 0.1),
        draw.views(rows // 2, dim),
        flop=(work, 4 * work),
        cells=rows * rows,
        peers={"lightly DCLLoss": _lightly("DCLLoss", temperature=0.1)},
    )


def supcon(draw: Draw, sizes: tuple[int, ...]) -> Problem:
    rows, dim = sizes
    work = float(rows * rows * dim)
    return Problem(
        "supcon",
        lambda z, y, impl: sf.supcon(z, y, temperature=0.1, impl=impl),
        lambda z, y: supcon_reference(z, y, 0.1),
        (draw(rows, dim),),
        (torch.arange(rows, device=draw.device) % (rows // 16),),
        flop=(work, 4 * work),
        cells=rows * rows,
    )


def info_nce(draw: Draw, sizes: tuple[int, ...]) -> Problem:
    batch, length, dim = sizes
    work = 2.0 * batch * length * dim
    q, k = draw.views(batch, dim)
    return Problem(
        "info_nce",
        lambda q, k, queue, impl: sf.info_nce(q, k, queue, temperature=0.07, impl=impl),
        lambda q, k, queue: info_nce_reference(q, k, queue, temperature=0.07),
        (q,),
        (k, draw.unit(length, dim)),
        flop=(work, 2 * work),
        bytes=(length * dim * draw.dtype.itemsize,) * 2,
        cells=batch * length,
    )


def clip(draw: Draw, sizes: tuple[int, ...]) -> Problem:
    pairs, dim = sizes
    work = 2.0 * pairs * pairs * dim
    return Problem(
        "clip_loss",
        lambda a, b, s, impl: sf.clip_loss(a, b, s, normalize=False, impl=impl),
        lambda a, b, s: clip_loss_reference(a, b, s, normalize=False),
        tuple(F.normalize(x, dim=1) for x in draw.views(pairs, dim)),
        (torch.tensor(20.0, device=draw.device, dtype=draw.dtype),),
        flop=(work, 4 * work),
        cells=pairs * pairs,
        peers={"open_clip ClipLoss": _open_clip("ClipLoss")},
    )


def siglip(draw: Draw, sizes: tuple[int, ...]) -> Problem:
    pairs, dim = sizes
    work = 2.0 * pairs * pairs * dim
    numbers = tuple(torch.tensor(x, device=draw.device, dtype=draw.dtype) for x in (10.0, -10.0))
    return Problem(
        "siglip_loss",
        lambda a, b, s, t, impl: sf.siglip_loss(a, b, s, t, normalize=False, impl=impl),
        lambda a, b, s, t: siglip_loss_reference(a, b, s, t, normalize=False),
        tuple(F.normalize(x, dim=1) for x in draw.views(pairs, dim)),
        numbers,
        flop=(work, 3 * work),
        cells=pairs * pairs,
        peers={"open_clip SigLipLoss": _open_clip("SigLipLoss")},
    )


def arcface(draw: Draw, sizes: tuple[int, ...], hard: bool = False) -> Problem:
    rows, classes, dim = sizes
    work, weight = 2.0 * rows * classes * dim, draw(classes, dim)
    labels = torch.arange(rows, device=draw.device) % classes
    number = {"hardness": torch.tensor(0.3, device=draw.device)} if hard else {}
    op, equation = (sf.curricularface, curricularface_reference) if hard else (sf.arcface, arcface_reference)
    peer: dict[str, Callable[[], Loss]] = {} if hard else {"insightface's arithmetic": lambda: insightface}
    if not hard:
        peer["PML ArcFaceLoss"] = _metric_learning(classes, dim, draw.device)
    return Problem(
        "margin_softmax",
        lambda x, w, y, impl: op(x, w, y, impl=impl, **number),
        lambda x, w, y: equation(x, w, y, **number),
        ((weight[labels].float() + 1.7 * draw(rows, dim).float()).to(draw.dtype), weight),
        (labels,),
        flop=(work, 3 * work),
        bytes=(classes * dim * draw.dtype.itemsize, classes * dim * 2.0 * draw.dtype.itemsize),
        cells=rows * classes,
        peers=peer,
    )


def dino(draw: Draw, sizes: tuple[int, ...]) -> Problem:
    samples, prototypes, dim = sizes
    work = 2.0 * 2 * samples * prototypes * dim  # two views of each side
    return Problem(
        "prototypes",
        lambda z, w, y, v, impl: sf.dino_loss(z, y, w, v, impl=impl),
        lambda z, w, y, v: dino_reference(z, y, w, v),
        (draw.unit(2, samples, dim), draw.unit(prototypes, dim)),
        (draw.unit(2, samples, dim), draw.unit(prototypes, dim)),
        flop=(2 * work, 4 * work),
        cells=4 * samples * prototypes,
    )


def sinkhorn(draw: Draw, sizes: tuple[int, ...]) -> Problem:
    cells = sizes[0] * sizes[1]
    size = draw.dtype.itemsize
    return Problem(
        "sinkhorn",
        lambda x, impl: sf.sinkhorn(x, impl=impl),
        lambda x: sinkhorn_reference(x),
        (draw(*sizes) / 4,),
        bytes=((4 * size + 4) * cells, 0),  # each of 3 iterations reads once; then once more, and the result
        cells=cells,
        differentiable=False,
    )


def koleo(draw: Draw, sizes: tuple[int, ...]) -> Problem:
    rows, dim = sizes
    work = float(rows * rows * dim)
    return Problem(
        "koleo",
        lambda x, impl: sf.koleo(x, impl=impl),
        koleo_reference,
        (draw(rows, dim),),
        flop=(work, work),
        cells=rows * rows,
        peers={"lightly KoLeoLoss": _lightly("KoLeoLoss")},
    )


def byol(draw: Draw, sizes: tuple[int, ...]) -> Problem:
    p, z = draw.views(*sizes)
    read = 2 * p.numel() * p.element_size()
    return Problem(
        "byol",
        lambda p, z, impl: sf.simsiam_loss(p, z, impl=impl),  # the value of lightly's loss
        lambda p, z: byol_reference(p, z) / 2 - 1,
        (p,),
        (z,),
        bytes=(read, read + p.numel() * p.element_size()),
        cells=p.numel(),
        peers={"lightly NegativeCosineSimilarity": _lightly("NegativeCosineSimilarity")},
    )


def two_views(draw: Draw, sizes: tuple[int, ...], op: str) -> Problem:
    rows, dim = sizes
    work = 4.0 * rows * dim * min(sizes)
    # lightly takes the mean of both views' variance terms, the paper their sum.
    ours, equation, options, peer = {
        "vicreg": (sf.vicreg, vicreg_reference, {"variance": 12.5}, "VICRegLoss"),
        "barlow_twins": (sf.barlow_twins, barlow_twins_reference, {}, "BarlowTwinsLoss"),
    }[op]
    return Problem(
        op,
        partial(ours, **options),
        partial(equation, **options),
        draw.views(rows, dim),
        flop=(work, 2 * work),
        cells=dim * dim,
        peers={f"lightly {peer}": _lightly(peer)},
    )


def knn(draw: Draw, sizes: tuple[int, ...]) -> Problem:
    queries, rows, dim, k = sizes
    return Problem(
        "knn_topk",
        lambda q, g, impl: sf.knn_topk(q, g, k, impl=impl)[0],
        lambda q, g: knn_topk_reference(q, g, k)[0],
        (draw(queries, dim),),
        (draw(rows, dim),),
        flop=(2.0 * queries * rows * dim, 0),
        cells=queries * rows,
        peers={"matmul and topk": lambda: lambda q, g: (F.normalize(q) @ F.normalize(g).T).topk(k, dim=1).values},
        differentiable=False,
    )


MAKERS: dict[str, Maker] = {
    "nt_xent": nt_xent,
    "info_nce": info_nce,
    "arcface": arcface,
    "siglip_loss": siglip,
    "clip_loss": clip,
    "dino_loss": dino,
    "sinkhorn": sinkhorn,
    "supcon": supcon,
    "dcl": dcl,
    "byol_loss": byol,
    "knn_topk": knn,
    "curricularface": partial(arcface, hard=True),
    "koleo": koleo,
    "vicreg": partial(two_views, op="vicreg"),
    "barlow_twins": partial(two_views, op="barlow_twins"),
}
