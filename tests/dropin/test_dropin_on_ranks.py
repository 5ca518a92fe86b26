"""Two and three gloo ranks, the original beside the drop-in: each rank's value, and gradients.

Gradients of rows are compared on each rank; those of shared numbers (a scale, a bias) after DDP's averaging.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_fast.distributed import average_gradients
from tests.dropin.same import close, rows, value_and_gradients
from tests.ranks import run_ranks

Loss = Callable[..., Tensor]


def same_on_ranks(ours: Loss, theirs: Loss, inputs: Sequence[Tensor], what: str) -> None:
    """Scalars are shared numbers: averaged first, as DDP does."""
    results = []
    for loss in (theirs, ours):
        value, *gradients = value_and_gradients(loss, inputs)
        shared = [torch.nn.Parameter(g) for g in gradients if g.dim() == 0]
        for parameter in shared:
            parameter.grad = parameter.detach().clone()
        average_gradients(shared, dist.group.WORLD)
        results.append([value, *(g for g in gradients if g.dim()), *(p.grad for p in shared)])
    for expected, got in zip(*results, strict=True):
        close(got, expected, inputs[0].dtype, what)


def lightly_on_rank(rank: int, world_size: int, name: str) -> None:
    import lightly.loss

    from ssl_fast.dropin import lightly as mine

    options = {
        "NTXentLoss": ({"temperature": 0.2}, {"memory_bank_size": (10, 6)}),
        "DCLLoss": ({"temperature": 0.2}, {"weight_fn": lambda a, b: ((a - b) ** 2).sum(1)}),
        "DCLWLoss": ({"temperature": 0.2, "sigma": 0.3},),
        "VICRegLoss": ({}, {"lambda_param": 2.0}),
        "BarlowTwinsLoss": ({"lambda_param": 0.1},),
    }[name]
    for gather in (True, False):
        for option in options:
            torch.manual_seed(0)
            ours = getattr(mine, name)(**option, gather_distributed=gather).double()
            torch.manual_seed(0)
            theirs = getattr(lightly.loss, name)(**option, gather_distributed=gather).double()
            for step in range(3):
                inputs = [rows(4, 6, seed=100 * rank + 10 * step + view) for view in range(2)]
                same_on_ranks(ours, theirs, inputs, f"{name} {option} {gather}")
            if "memory_bank_size" in option:
                close(ours.memory_bank.bank, theirs.memory_bank.bank, torch.float64, "bank")


def dino_and_swav_on_rank(rank: int, world_size: int) -> None:
    import lightly.loss

    from ssl_fast.dropin import lightly as mine

    ours, theirs = mine.DINOLoss(5).double(), lightly.loss.DINOLoss(5).double()
    for step in range(4):
        first = 100 * rank + 10 * step
        teacher = [rows(3, 5, seed=first + view, grad=False) for view in range(2)]
        student = [rows(3, 5, seed=first + 5 + view) for view in range(3)]
        same_on_ranks(lambda *s, t=teacher: ours(t, list(s)), lambda *s, t=teacher: theirs(t, list(s)), student, "DINO")
        close(ours.center, theirs.center, torch.float64, "center")
    for gather in (True, False):
        options = {"sinkhorn_gather_distributed": gather, "sinkhorn_epsilon": 0.3}
        crops = [rows(4, 5, seed=100 * rank + view) for view in range(3)]
        queue = [rows(6, 5, seed=100 * rank + 50 + view, grad=False) for view in range(2)]
        for queues in (None, queue):
            same_on_ranks(
                lambda *t, q=queues, o=options: mine.SwaVLoss(**o)(t[:2], t[2:], q),
                lambda *t, q=queues, o=options: lightly.loss.SwaVLoss(**o)(list(t[:2]), list(t[2:]), q),
                crops,
                f"SwaV {gather}",
            )


def features(rank: int) -> list[Tensor]:
    unit = [torch.nn.functional.normalize(rows(4, 6, seed=10 * rank + tower, grad=False)) for tower in range(2)]
    return [t.requires_grad_() for t in (*unit, torch.tensor(5.0).double(), torch.tensor(-3.0).double())]


def clip_on_rank(rank: int, world_size: int) -> None:
    import open_clip.loss

    from ssl_fast.dropin import open_clip as mine

    for local_loss, with_grad in ((False, False), (False, True), (True, True)):
        options = {"local_loss": local_loss, "gather_with_grad": with_grad, "rank": rank, "world_size": world_size}
        same_on_ranks(mine.ClipLoss(**options), open_clip.loss.ClipLoss(**options), features(rank), f"CLIP {options}")


def siglip_on_rank(rank: int, world_size: int) -> None:
    import open_clip.loss

    from ssl_fast.dropin import open_clip as mine

    for impl in mine.DIST_IMPLS:
        options = {"rank": rank, "world_size": world_size, "dist_impl": impl}
        same_on_ranks(mine.SigLipLoss(**options), open_clip.loss.SigLipLoss(**options), features(rank), impl)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss", "VICRegLoss", "BarlowTwinsLoss"])
def test_lightly_gathers(tmp_path: Path, name: str) -> None:
    pytest.importorskip("lightly")
    run_ranks(lightly_on_rank, 2, tmp_path, name)


def test_dino_and_swav(tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    run_ranks(dino_and_swav_on_rank, 2, tmp_path)


@pytest.mark.parametrize("world_size", [2, 3])
def test_clip_gathers(tmp_path: Path, world_size: int) -> None:
    pytest.importorskip("open_clip")
    run_ranks(clip_on_rank, world_size, tmp_path)


@pytest.mark.parametrize("world_size", [2, 3])
def test_siglip_exchanges(tmp_path: Path, world_size: int) -> None:
    pytest.importorskip("open_clip")
    run_ranks(siglip_on_rank, world_size, tmp_path)
