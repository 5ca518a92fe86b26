"""NNCLR beside lightly's heads and memory bank and the paper's loss; its queue over steps and ranks."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.data.views import Batch
from ssl_fast.methods.pretrain.nnclr import nearest
from tests.methods.pretrain.oracles import batch_of, compare, make_pair
from tests.ranks import run_ranks
from tests.train.runs import make_method

modules = pytest.importorskip("lightly.models.modules", reason="lightly is not installed")


def contrast(neighbours: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """The function L of the paper's Algorithm 1."""
    logits = F.normalize(neighbours, dim=1) @ F.normalize(predictions, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits)))


def test_the_first_step_is_lightlys_and_the_papers() -> None:
    method, oracle = make_pair(
        "nnclr", projector=modules.NNCLRProjectionHead(64, 16, 8), predictor=modules.NNCLRPredictionHead(8, 16, 8)
    )
    bank = modules.NNMemoryBankModule(size=(50, 8))
    bank.bank = method.queue.rows.float()

    def loss(batch: Batch) -> Tensor:
        z1, z2 = (oracle.projector(oracle.backbone(view)) for view in batch.views)
        p1, p2 = oracle.predictor(z1), oracle.predictor(z2)
        n1, n2 = bank(z1.detach(), update=False), bank(z2.detach(), update=False)
        return (contrast(n1, p2, 0.1) + contrast(n2, p1, 0.1)) / 2

    compare(method, oracle, loss, batch_of(method))


def test_the_nearest_row_is_that_of_the_largest_cosine_under_autocast_too() -> None:
    rows = F.normalize(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    wanted = torch.tensor([3, 399, 0])
    z = 5 * rows[wanted] + 1e-3
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = nearest(z.to(dtype), rows.bfloat16())
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found, rows[wanted].bfloat16().to(found.dtype))


def test_the_queue_takes_in_the_first_views_embeddings_after_a_step() -> None:
    method = make_method("nnclr")
    before, batch = method.queue.rows.clone(), batch_of(method)
    embeddings, _ = method(batch, 0.0)
    assert torch.equal(method.queue.rows, before)
    method.after_step(0.0)
    torch.testing.assert_close(method.queue.rows[:12], F.normalize(embeddings["z1"].detach(), dim=1))
    assert torch.equal(method.queue.rows[12:], before[12:])


def step_on_ranks(rank: int, world_size: int, folder: str) -> None:
    """One step of a batch of 12, 7 and 5 of them on two ranks."""
    method = make_method("nnclr")
    method.group = dist.group.WORLD
    batch = batch_of(method)
    batch = batch.slice(0, 7) if rank == 0 else batch.slice(7, 12)
    _, losses = method(batch, 0.0)
    method.after_step(0.0)
    torch.save((losses["loss"].detach(), method.queue.state_dict()), Path(folder) / f"{rank}.pt")


def test_every_rank_has_the_same_queue_and_it_is_that_of_one_rank(tmp_path: Path) -> None:
    run_ranks(step_on_ranks, 2, tmp_path, str(tmp_path))
    method = make_method("nnclr")
    _, losses = method(batch_of(method), 0.0)
    method.after_step(0.0)
    for rank in range(2):
        loss, queue = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(loss, losses["loss"].detach(), rtol=1e-5, atol=1e-6)
        assert queue["pointer"] == method.queue.pointer == 12
        torch.testing.assert_close(queue["rows"], method.queue.rows, rtol=1e-4, atol=1e-5)
    first, second = (torch.load(tmp_path / f"{rank}.pt")[1]["rows"] for rank in range(2))
    assert torch.equal(first, second)
