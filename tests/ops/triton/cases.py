"""One call of every op with a GPU path: run small in the interpreter, and at several tiles and panels on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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
    koleo,
    nt_xent,
    siglip_loss,
    simsiam_loss,
    supcon,
    swav_loss,
    vicreg,
)  # fmt: skip
from ssl_fast.ops.barlow_twins import barlow_twins_reference
from ssl_fast.ops.byol import byol_reference
from ssl_fast.ops.clip_loss import clip_loss_reference
from ssl_fast.ops.dcl import dcl_reference
from ssl_fast.ops.dino import dino_reference
from ssl_fast.ops.ibot import ibot_reference
from ssl_fast.ops.info_nce import info_nce_reference
from ssl_fast.ops.koleo import koleo_reference
from ssl_fast.ops.nt_xent import nt_xent_reference
from ssl_fast.ops.siglip_loss import siglip_loss_reference
from ssl_fast.ops.supcon import supcon_reference
from ssl_fast.ops.swav import swav_reference
from ssl_fast.ops.vicreg import vicreg_reference
from tests.ops.conftest import Checker, Errors
from tests.ops.margin_cases import LOSSES, samples
from tests.ops.towers import number, towers

Loss = Callable[..., Tensor]


@dataclass
class Case:
    """An op, its equation, and inputs in float64 for both: rows, then what else wants a gradient."""

    op: str  # of dispatch.OPS
    ours: Loss  # (*inputs, impl=...)
    plain: Loss  # (*inputs)
    inputs: tuple[Tensor, ...]

    def check(self, checker: Checker, dtype: torch.dtype, device: str, impl: str) -> Errors:
        """Output and gradients by the rule of tests/ops/conftest.py."""
        return checker.against(partial(self.ours, impl=impl), self.plain, self.inputs, dtype, device)


def _beside(x: Tensor, constant: Tensor) -> Tensor:
    """A constant, where x is; in its dtype if it has one of its own."""
    return constant.to(x) if constant.is_floating_point() else constant.to(x.device)


def _contrast(op: str, ours: Loss, plain: Loss, large: bool) -> Case:
    return Case(op, ours, plain, (*towers(*((700, 128) if large else (9, 20))), number(0.2)))


def _nt_xent(large: bool) -> Case:
    return _contrast("nt_xent", lambda a, b, t, impl: nt_xent(a, b, temperature=t, impl=impl), nt_xent_reference, large)


def _dcl(large: bool) -> Case:
    return _contrast("dcl", lambda a, b, t, impl: dcl(a, b, temperature=t, impl=impl), dcl_reference, large)


def _supcon(large: bool) -> Case:
    z, _ = towers(*((900, 100) if large else (20, 20)))
    labels = torch.arange(len(z)) % (len(z) // 4)
    return Case(
        "supcon",
        lambda z, impl: supcon(z, _beside(z, labels), temperature=0.2, impl=impl),
        lambda z: supcon_reference(z, labels, temperature=0.2),
        (z,),
    )


def _info_nce(large: bool) -> Case:
    rows, length, dim = (300, 4099, 128) if large else (9, 50, 20)
    queue = F.normalize(torch.randn(length, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return Case(
        "info_nce",
        lambda q, k, impl: info_nce(q, k, _beside(q, queue), temperature=0.2, impl=impl),
        lambda q, k: info_nce_reference(q, k, _beside(q, queue), temperature=0.2),
        towers(rows, dim),
    )


def _clip(large: bool) -> Case:
    ours = lambda a, b, s, impl: clip_loss(a, b, s, impl=impl)  # noqa: E731
    pairs = towers(*((1500, 256) if large else (9, 20)))
    return Case("clip_loss", ours, clip_loss_reference, (*pairs, number(10.0)))


def _siglip(large: bool) -> Case:
    ours = lambda a, b, s, t, impl: siglip_loss(a, b, s, t, impl=impl)  # noqa: E731
    pairs = towers(*((1500, 256) if large else (9, 20)))
    return Case("siglip_loss", ours, siglip_loss_reference, (*pairs, number(10.0), number(-10.0)))


def _heads(large: bool, num_views: int) -> tuple[Tensor, ...]:
    """Unit rows of student and teacher, prototypes of each."""
    N, K, D = (65, 5000, 64) if large else (5, 40, 12)
    random = torch.Generator().manual_seed(N)
    draw = lambda *s: F.normalize(torch.randn(*s, generator=random, dtype=torch.float64), dim=-1)  # noqa: E731
    return draw(num_views, N, D).requires_grad_(), draw(2, N, D), draw(K, D).requires_grad_(), draw(K, D)


def _dino(large: bool) -> Case:
    inputs = _heads(large, 4)
    center = torch.linspace(-0.1, 0.1, len(inputs[2]), dtype=torch.float64)
    return Case(
        "prototypes",
        lambda *a, impl: dino_loss(*a, center=_beside(a[0], center), impl=impl),
        lambda *a: dino_reference(*a, center=_beside(a[0], center)),
        inputs,
    )


def _dino_logits(large: bool) -> Case:
    z, y, w, wt = _heads(large, 4)
    ours = lambda s, t, impl: dino_loss(s, t, impl=impl)  # noqa: E731
    return Case("prototype_logits", ours, dino_reference, ((z @ w.T).detach().requires_grad_(), y @ wt.T))


def _ibot(large: bool) -> Case:
    z, y, w, wt = _heads(large, 2)
    masks = torch.zeros(3, len(z[0]), dtype=torch.bool)  # of three images; each token masked in one
    masks[torch.arange(len(z[0])) % 3, torch.arange(len(z[0]))] = True
    return Case(
        "prototypes",
        lambda s, t, *heads, impl: ibot_loss(s, t, _beside(s, masks), *heads, impl=impl),
        lambda s, t, *heads: ibot_reference(s, t, masks, *heads),
        (z.detach()[0].requires_grad_(), y[1], w, wt),
    )


def _swav(large: bool, logits: bool) -> Case:
    z, _, w, _ = _heads(large, 3)
    ours = lambda *a, impl: swav_loss(*a, impl=impl)  # noqa: E731
    if logits:
        return Case("sinkhorn", ours, swav_reference, ((z @ w.T).detach().requires_grad_(),))
    return Case("prototypes", ours, swav_reference, (z, w))


def _margin(name: str, large: bool, centres: int = 1) -> Case:
    *inputs, labels = samples(*((300, 33000, 64) if large and centres == 1 else (20, 300, 24)), centres)
    labels[3] = -1
    op, reference = LOSSES[name]
    return Case(
        "margin_softmax",
        lambda x, w, s, impl: op(x, w, _beside(x, labels), scale=s, impl=impl),
        lambda x, w, s: reference(x, w, labels, scale=s),
        (*inputs, number(16.0)),
    )


def _byol(large: bool, dim: int = 24) -> Case:
    p, z = towers(1000 if large else 7, dim)
    return Case("byol", lambda p, impl: byol_loss(p, _beside(p, z), impl=impl), lambda p: byol_reference(p, z), (p,))


def _simsiam(large: bool) -> Case:
    p, z = towers(1000 if large else 7, 2048 if large else 24)
    ours = lambda p, impl: simsiam_loss(p, _beside(p, z), impl=impl)  # noqa: E731
    return Case("byol", ours, lambda p: byol_reference(p, z) / 2 - 1, (p,))


def _koleo(large: bool) -> Case:
    rows = towers(*((1000, 128) if large else (20, 12)), alignment=0.9)[0]
    return Case("koleo", lambda x, impl: koleo(x, impl=impl), koleo_reference, (rows,))


def _two_views(op: str, ours: Loss, plain: Loss, large: bool) -> Case:
    return Case(op, ours, plain, towers(*((500, 700) if large else (12, 20))))


CASES: dict[str, Callable[[bool], Case]] = {
    "nt_xent": _nt_xent,
    "dcl": _dcl,
    "supcon": _supcon,
    "info_nce": _info_nce,
    "clip_loss": _clip,
    "siglip_loss": _siglip,
    "dino_loss": _dino,
    "dino_loss of logits": _dino_logits,
    "ibot_loss": _ibot,
    "swav_loss": partial(_swav, logits=False),
    "swav_loss of logits": partial(_swav, logits=True),
    **{f"margin: {name}": partial(_margin, name) for name in LOSSES},
    "margin: three centres": partial(_margin, "arcface", centres=3),
    "byol_loss": _byol,
    "byol_loss of long rows": partial(_byol, dim=8192),
    "simsiam_loss": _simsiam,
    "koleo": _koleo,
    "vicreg": partial(_two_views, "vicreg", vicreg, vicreg_reference),
    "barlow_twins": partial(_two_views, "barlow_twins", barlow_twins, barlow_twins_reference),
}
