"""Every public name of `ssl_fast` once, forward and backward: `python every_op.py`. Needs torch and ssl_fast alone."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import ssl_fast as sf

N, D, K = 6, 8, 10  # samples, embedding, classes or prototypes
LABELS = torch.tensor([0, 1, 2, 0, 9, -1])
MASKS = torch.tensor([[True, False, True, True], [False, True, True, True]])  # N are true


def rows(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def views() -> list[Tensor]:
    return [rows(N, D), rows(N, D)]


def learned() -> list[Tensor]:
    """Two towers, scale and bias."""
    return [*views(), torch.tensor(2.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)]


def heads() -> list[Tensor]:
    """Views of student and teacher, and their prototypes."""
    return [rows(2, N, D), torch.randn(2, N, D), rows(K, D), torch.randn(K, D)]


def tokens() -> list[Tensor]:
    return [rows(N, D), torch.randn(N, D), rows(K, D), torch.randn(K, D)]


def classes() -> list[Tensor]:
    return [rows(N, D), rows(K, D)]


Loss = tuple[Callable[[], list[Tensor]], Callable[..., Tensor]]  # the inputs; what is made of them
NORMS = {"norm_mean": torch.tensor(2.0), "norm_std": torch.tensor(1.0)}
HARDNESS = {"hardness": torch.tensor(0.3)}
LOSSES: dict[str, Loss] = {
    "nt_xent": (views, lambda a, b, impl: sf.nt_xent(a, b, impl=impl)),
    "NTXentLoss": (views, lambda a, b, impl: sf.NTXentLoss(impl=impl)(a, b)),
    "supcon": (views, lambda a, b, impl: sf.supcon(a, LABELS, impl=impl)),
    "SupConLoss": (views, lambda a, b, impl: sf.SupConLoss(impl=impl)(b, LABELS)),
    "dcl": (views, lambda a, b, impl: sf.dcl(a, b, impl=impl)),
    "DCLLoss": (views, lambda a, b, impl: sf.DCLLoss(sigma=0.5, impl=impl)(a, b)),
    "info_nce": (views, lambda a, b, impl: sf.info_nce(a, b, torch.eye(D), impl=impl)),
    "InfoNCELoss": (views, lambda a, b, impl: sf.InfoNCELoss(impl=impl)(a, b)),
    "clip_loss": (learned, lambda a, b, s, t, impl: sf.clip_loss(a, b, s, impl=impl)),
    "CLIPLoss": (learned, lambda a, b, s, t, impl: sf.CLIPLoss(impl=impl)(a, b, s)),
    "siglip_loss": (learned, lambda a, b, s, t, impl: sf.siglip_loss(a, b, s, t, impl=impl)),
    "SigLIPLoss": (learned, lambda a, b, s, t, impl: sf.SigLIPLoss(impl=impl)(a, b, s, t)),
    "byol_loss": (views, lambda a, b, impl: sf.byol_loss(a, b)),
    "BYOLLoss": (views, lambda a, b, impl: sf.BYOLLoss()(a, b)),
    "simsiam_loss": (views, lambda a, b, impl: sf.simsiam_loss(a, b)),
    "SimSiamLoss": (views, lambda a, b, impl: sf.SimSiamLoss()(a, b)),
    "vicreg": (views, lambda a, b, impl: sf.vicreg(a, b)),
    "VICRegLoss": (views, lambda a, b, impl: sf.VICRegLoss()(a, b)),
    "barlow_twins": (views, lambda a, b, impl: sf.barlow_twins(a, b)),
    "BarlowTwinsLoss": (views, lambda a, b, impl: sf.BarlowTwinsLoss()(a, b)),
    "dino_loss": (heads, lambda *t, impl: sf.dino_loss(*t, center="sinkhorn", impl=impl)),
    "DINOLoss": (heads, lambda *t, impl: sf.DINOLoss(impl=impl)(*t)),
    "ibot_loss": (tokens, lambda z, y, w, v, impl: sf.ibot_loss(z, y, MASKS, w, v, impl=impl)),
    "IBOTLoss": (tokens, lambda z, y, w, v, impl: sf.IBOTLoss(impl=impl)(z, y, MASKS, w, v)),
    "swav_loss": (heads, lambda z, y, w, v, impl: sf.swav_loss(z, w, impl=impl)),
    "SwAVLoss": (heads, lambda z, y, w, v, impl: sf.SwAVLoss(impl=impl)(z, w)),
    "koleo": (views, lambda a, b, impl: sf.koleo(a, impl=impl)),
    "KoLeoLoss": (views, lambda a, b, impl: sf.KoLeoLoss(impl=impl)(b)),
    "arcface": (classes, lambda x, w, impl: sf.arcface(x, w, LABELS, impl=impl)),
    "cosface": (classes, lambda x, w, impl: sf.cosface(x, w, LABELS, impl=impl)),
    "combined_margin": (classes, lambda x, w, impl: sf.combined_margin(x, w, LABELS, impl=impl)),
    "adaface": (classes, lambda x, w, impl: sf.adaface(x, w, LABELS, impl=impl, **NORMS)),
    "curricularface": (classes, lambda x, w, impl: sf.curricularface(x, w, LABELS, impl=impl, **HARDNESS)),
}


def optimized(make: Callable[[list[nn.Parameter]], Any]) -> None:
    """Two steps move every parameter."""
    params = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))]
    before = [p.detach().clone() for p in params]
    optimizer = make(params)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(((p - 3) ** 2).sum() for p in params)
        loss.backward()  # type: ignore[union-attr]
        return loss  # type: ignore[return-value]

    for _ in range(2):
        optimizer.step(closure)
    assert all(p.isfinite().all() and not p.equal(b) for p, b in zip(params, before, strict=True))


def queue(impl: str) -> None:
    ring = sf.MoCoQueue(16, D)
    sf.info_nce(*views(), ring(), impl=impl).backward()
    ring.enqueue_(torch.randn(N, D))
    assert int(ring.pointer) == N


def center(impl: str) -> None:
    moving = sf.DINOCenter(K)
    moving.update_(torch.randn(N, D), torch.randn(K, D))
    assert moving().isfinite().all() and moving().any()


def margin_head(impl: str) -> None:
    for margin in ("arcface", "cosface", "combined_margin", "adaface", "curricularface"):
        head = sf.MarginHead(D, K, loss=margin, sub_centers=2, impl=impl)
        head(rows(N, D), LABELS).backward()
        assert head.weight.grad is not None and head.weight.grad.isfinite().all()


def average(impl: str) -> None:
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    sf.EMA(teacher, student, momentum=0.0, impl=impl).update_()
    assert teacher.weight.equal(student.weight)


def clip(impl: str) -> None:
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.full((4,), 3.0)
    assert float(sf.clip_grad_norm_([p], 1.0, impl=impl)) == 6 and abs(float(p.grad.norm()) - 1) < 1e-4


def centralize(impl: str) -> None:
    g = torch.randn(3, 4)
    sf.centralize_gradients_([g], impl=impl)
    assert float(g.sum(1).abs().max()) < 1e-5


def neighbours(impl: str) -> None:
    assert sf.knn_topk(torch.eye(D), torch.eye(D), 1, impl=impl)[1].flatten().equal(torch.arange(D))


SGD = torch.optim.SGD


def augmented(impl: str) -> None:
    """Views need numpy, and say so."""
    if importlib.util.find_spec("numpy") is None:
        try:
            _ = sf.augment
        except ImportError as error:
            assert "pip install" in str(error)
        return
    from ssl_fast.data.view_presets import simclr

    images = torch.randint(0, 256, (2, 40, 48, 3), dtype=torch.uint8)
    try:
        views = sf.augment(images, simclr(size=16), key=(0, 0, range(2)))
    except ImportError as error:  # without C++ it is torchvision that makes them
        assert "torchvision" in str(error)
        return
    assert all(view.isfinite().all() and view.shape == (2, 3, 16, 16) for view in views)


OTHERS: dict[str, Callable[[str], Any]] = {
    "augment": augmented,
    "MoCoQueue": queue,
    "DINOCenter": center,
    "MarginHead": margin_head,
    "EMA": average,
    "clip_grad_norm_": clip,
    "centralize_gradients_": centralize,
    "knn_topk": neighbours,
    "sinkhorn": lambda impl: sf.sinkhorn(torch.randn(N, K), impl=impl).sum(1).allclose(torch.ones(N)),
    "backends": lambda impl: sf.backends()["nt_xent"]["reference"],
    "LARS": lambda impl: optimized(lambda p: sf.LARS(p, lr=0.1, impl=impl)),
    "LAMB": lambda impl: optimized(lambda p: sf.LAMB(p, lr=0.1, impl=impl)),
    "SAM": lambda impl: optimized(lambda p: sf.SAM(p, SGD, lr=0.1, impl=impl)),
    "Lookahead": lambda impl: optimized(lambda p: sf.Lookahead(SGD(p, lr=0.1), impl=impl)),
    "GradientCentralization": lambda impl: optimized(lambda p: sf.GradientCentralization(SGD(p, lr=0.1), impl=impl)),
}


def differentiate(name: str, impl: str, transform: Callable[..., Any] = lambda function: function) -> None:
    """A loss and the gradients of its inputs are finite numbers."""
    make, function = LOSSES[name]
    torch.manual_seed(0)
    inputs = make()
    loss = transform(lambda *tensors: function(*tensors, impl=impl))(*inputs)
    loss.backward()
    grads = [t.grad for t in inputs if t.grad is not None]
    assert grads and loss.isfinite() and all(g.isfinite().all() for g in grads), name


def main() -> None:
    forgotten = {*sf.__all__} - {"__version__"} - LOSSES.keys() - OTHERS.keys()
    if forgotten:
        sys.exit(f"tests/every_op.py has no case of {', '.join(sorted(forgotten))}")
    for impl in ("cpp", "reference"):
        for name in LOSSES:
            differentiate(name, impl)
            torch._dynamo.reset()  # one lambda, compiled for many losses
            differentiate(name, impl, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"))
        for run in OTHERS.values():
            run(impl)
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler:
        differentiate("nt_xent", "cpp", lambda f: torch.compile(f, fullgraph=True))
    print(f"torch {torch.__version__}: {len(LOSSES) + len(OTHERS)} names, compiler {compiler}")


if __name__ == "__main__":
    main()
