"""SAM: the paper's steps around any optimiser, and what happens when something goes wrong in between."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_fast.optim import LARS, SAM, GradientCentralization, Lookahead
from ssl_fast.optim.config import OptimizerConfig, build_optimizer
from tests.ranks import run_ranks

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def network(norm: bool = False, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    middle = nn.BatchNorm1d(8) if norm else nn.Tanh()
    return nn.Sequential(nn.Linear(6, 8), middle, nn.Dropout(0.3), nn.Linear(8, 3)).to(dtype)


def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor = X) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x.to(next(model.parameters()).dtype)).square().mean()
        loss.backward()
        return loss.detach()

    return closure


def sam_by_the_paper(model: nn.Module, base: torch.optim.Optimizer, rho: float, adaptive: bool, steps: int) -> None:
    """Algorithm 1 of Foret et al. 2021; with the operator of Kwon et al. 2021 where adaptive."""
    params = list(model.parameters())
    for _ in range(steps):
        base.zero_grad()
        model(X).square().mean().backward()
        scales = [p.detach().abs() if adaptive else torch.ones_like(p) for p in params]
        norm = torch.cat([(t * p.grad).flatten() for t, p in zip(scales, params, strict=True)]).norm()
        before = [p.detach().clone() for p in params]
        with torch.no_grad():
            for t, p in zip(scales, params, strict=True):
                p.add_(rho * t**2 * p.grad / (norm + 1e-12))
        base.zero_grad()
        model(X).square().mean().backward()
        with torch.no_grad():
            for p, b in zip(params, before, strict=True):
                p.copy_(b)
        base.step()


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("base", "options"),
    [
        (torch.optim.SGD, SGD),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),  # restored, then stepped
        (torch.optim.AdamW, {"lr": 0.02}),
        (torch.optim.AdamW, {"lr": 0.02, "amsgrad": True}),  # restored, then stepped
        (torch.optim.Adam, {"lr": 0.02}),
        (LARS, {"lr": 2.0}),
    ],
    ids=str,
)
def test_it_is_the_papers_algorithm(base: Any, options: dict, adaptive: bool, impl: str) -> None:
    model = network().eval()
    twin = copy.deepcopy(model)
    optimizer = SAM(model.parameters(), base, rho=0.3, adaptive=adaptive, impl=impl, **options)
    for _ in range(4):
        optimizer.step(closure_of(model, optimizer))
    sam_by_the_paper(twin, base(twin.parameters(), **options), 0.3, adaptive, 4)
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-9, atol=1e-10)


def test_rho_of_zero_is_the_base_optimizer() -> None:
    model = network().eval()
    twin = copy.deepcopy(model)
    optimizer, plain = (
        SAM(model.parameters(), torch.optim.SGD, rho=0.0, **SGD),
        torch.optim.SGD(twin.parameters(), **SGD),
    )
    for _ in range(3):
        loss = optimizer.step(closure_of(model, optimizer))
        torch.testing.assert_close(loss, plain.step(closure_of(twin, plain)))
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-12, atol=1e-13)


def test_groups_share_one_norm_and_keep_their_own_rho() -> None:
    p, q = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = SAM([{"params": [p]}, {"params": [q], "rho": 1.0}], torch.optim.SGD, rho=0.5, lr=0.0)
    seen = []

    def closure() -> float:
        seen.append((p.item(), q.item()))
        p.grad, q.grad = torch.tensor([3.0]), torch.tensor([4.0])
        return 0.0

    optimizer.step(closure)
    assert seen[1] == pytest.approx((0.5 * 3 / 5, 1.0 * 4 / 5))
    assert (p.item(), q.item()) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [1, 2])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW, LARS])
def test_a_pass_that_is_not_finite_changes_no_bit(base: Any, bad: int) -> None:
    model = network(dtype=torch.float32).eval()
    optimizer = SAM(model.parameters(), base, rho=0.7, lr=0.1)
    good = closure_of(model, optimizer)
    optimizer.step(good)
    before, state = [p.clone() for p in model.parameters()], copy.deepcopy(optimizer.state_dict())
    calls = []

    def closure() -> Tensor:
        loss = good()
        calls.append(1)
        if len(calls) == bad:
            optimizer.zero_grad()
        return loss

    optimizer.step(closure)
    assert len(calls) == bad
    assert all(p.equal(b) for p, b in zip(model.parameters(), before, strict=True))
    after = optimizer.state_dict()
    assert str(after) == str(state)  # counts and moments as printed; bits below
    for i, entry in state["state"].items():
        assert all(torch.equal(entry[k], after["state"][i][k]) for k in entry if isinstance(entry[k], Tensor))


def test_an_exception_in_the_second_pass_leaves_the_parameters() -> None:
    model = network().eval()
    optimizer = SAM(model.parameters(), torch.optim.SGD, **SGD)
    good, calls, before = closure_of(model, optimizer), [], [p.clone() for p in model.parameters()]

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return good()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(p.equal(b) for p, b in zip(model.parameters(), before, strict=True))


def test_parameters_with_a_gradient_in_one_pass_only() -> None:
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    for base in (torch.optim.SGD, LARS):
        with torch.no_grad():
            p.fill_(1.0), q.fill_(1.0)
        optimizer = SAM([p, q], base, rho=0.5, lr=0.25, momentum=0.0, weight_decay=0.0)
        for first, second in ((p, q), (q, p)):
            calls = []

            def closure(optimizer=optimizer, first=first, second=second, calls=calls) -> float:
                optimizer.zero_grad()
                (second if calls else first).grad = torch.ones(1)
                calls.append(1)
                return 0.0

            optimizer.step(closure)
            assert first.item() in (1.0, 0.75) and second.item() == 0.75  # moved by its own second gradient alone


def test_both_passes_draw_the_same_numbers_and_the_state_goes_on_as_after_one() -> None:
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.0, lr=0.0)
    losses, inner = [], closure_of(model, optimizer)

    def closure() -> Tensor:
        losses.append(inner())
        return losses[-1]

    torch.manual_seed(3)
    optimizer.step(closure)
    assert losses[0].equal(losses[1])
    after = torch.rand(3)
    torch.manual_seed(3)
    inner()
    assert torch.rand(3).equal(after)
    losses.clear()
    SAM(model.parameters(), torch.optim.SGD, rho=0.0, lr=0.0, replay_random=False).step(closure)
    assert not losses[0].equal(losses[1])


def test_batch_statistics_are_recorded_once_when_frozen() -> None:
    for freeze, batches in ((True, 1), (False, 2)):
        model = network(norm=True)
        optimizer = SAM(model.parameters(), torch.optim.SGD, freeze=model if freeze else (), lr=0.1)
        optimizer.step(closure_of(model, optimizer))
        assert model[1].num_batches_tracked.item() == batches
        assert model[1].track_running_stats
    reference = network(norm=True)
    reference(X)
    frozen = network(norm=True)
    optimizer = SAM(frozen.parameters(), torch.optim.SGD, freeze=[frozen[1]], rho=0.5, lr=0.1)
    optimizer.step(closure_of(frozen, optimizer))
    assert frozen[1].running_mean.equal(reference[1].running_mean)


def test_a_loss_scale_that_the_closure_takes_off_again_changes_nothing() -> None:
    results = []
    for scale in (1.0, 1024.0):
        model = network().eval()
        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.1, **SGD)

        def closure(model=model, optimizer=optimizer, scale=scale) -> Tensor:
            optimizer.zero_grad()
            loss = model(X).square().mean()
            (loss * scale).backward()
            for p in model.parameters():
                p.grad /= scale
            return loss.detach()

        for _ in range(2):
            optimizer.step(closure)
        results.append(list(model.parameters()))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW, LARS])
def test_resumed_training_is_bit_identical(base: Any) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = SAM(model.parameters(), base, rho=0.1, freeze=model, lr=0.05)
        return Lookahead(GradientCentralization(optimizer), k=3)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            optimizer.step(closure_of(model, optimizer))

    model = network(norm=True, dtype=torch.float32)
    optimizer = make(model)
    train(model, optimizer, range(4))
    resumed, file = copy.deepcopy(model), io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = make(resumed)
    again.load_state_dict(torch.load(file, weights_only=True))
    train(model, optimizer, range(4, 9))
    train(resumed, again, range(4, 9))
    assert all(p.equal(q) for p, q in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_a_schedule_sees_the_groups_of_the_base() -> None:
    p = nn.Parameter(torch.ones(1))
    optimizer = SAM([p], torch.optim.SGD, lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def closure() -> float:
        p.grad = torch.ones(1)
        return 0.0

    for value in (0.0, -0.5):
        optimizer.step(closure)
        schedule.step()
        assert p.item() == value
    assert optimizer.base.param_groups is optimizer.param_groups
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": 0.2})
    assert [group["rho"] for group in optimizer.param_groups] == [0.05, 0.2]


def test_bad_arguments_are_named() -> None:
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="rho must be at least 0, got -1"):
        SAM([p], torch.optim.SGD, rho=-1.0, lr=0.1)
    assert SAM([p], torch.optim.Adam, eps=1e-3).base.param_groups[0]["eps"] == 1e-3  # an option of the base's
    with pytest.raises(ValueError, match=r"SAM\.step needs a closure"):
        SAM([p], torch.optim.SGD, lr=0.1).step()


def test_the_configuration_builds_it_from_the_inside_out() -> None:
    model = network(norm=True)
    config = OptimizerConfig(
        "lamb", sam_rho=0.1, sam_adaptive=True, lookahead_k=5, lookahead_alpha=0.7, centralize=True
    )
    outer = build_optimizer(config, model.named_parameters(), 0.2, freeze=[model])
    assert (outer.k, outer.alpha) == (5, 0.7)
    sam = outer.base.base
    assert [type(o).__name__ for o in (outer, outer.base, sam, sam.base)] == [
        "Lookahead", "GradientCentralization", "SAM", "LAMB",
    ]  # fmt: skip
    assert all((g["rho"], g["adaptive"], g["lr"]) == (0.1, True, 0.2) for g in outer.param_groups)
    assert sam.freeze == [model]
    assert type(build_optimizer(OptimizerConfig(), model.named_parameters(), 0.1)) is torch.optim.SGD
    with pytest.raises(ValueError, match="expected sgd, lars, lamb or adamw, got 'x'"):
        build_optimizer(OptimizerConfig("x", sam_rho=0.1), model.named_parameters(), 0.1)


def m_sharpness(steps: int, parts: int) -> list[Tensor]:
    """The same in one process: each part of the rows climbs alone, the gradients found there are averaged."""
    model = network().eval()
    base, params = torch.optim.SGD(model.parameters(), **SGD), list(model.parameters())
    for _ in range(steps):
        total = [torch.zeros_like(p) for p in params]
        for rows in X.chunk(parts):
            grads = torch.autograd.grad(model(rows).square().mean(), params)
            norm = torch.cat([g.flatten() for g in grads]).norm()
            twin = copy.deepcopy(model)
            with torch.no_grad():
                for p, g in zip(twin.parameters(), grads, strict=True):
                    p.add_(0.4 * g / norm)
            found = torch.autograd.grad(twin(rows).square().mean(), list(twin.parameters()))
            total = [t + g / parts for t, g in zip(total, found, strict=True)]
        for p, g in zip(params, total, strict=True):
            p.grad = g
        base.step()
    return [p.detach() for p in params]


def train_on_ranks(rank: int, world_size: int, local: bool) -> None:
    """Two SAM steps on this rank's rows under DistributedDataParallel; all ranks must end at the joined result."""
    model = network().eval()
    wrapped = nn.parallel.DistributedDataParallel(model)
    more: dict[str, Any] = {"first_pass": wrapped.no_sync} if local else {}
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.4, **more, **SGD)
    for _ in range(2):
        optimizer.step(closure_of(wrapped, optimizer, X.chunk(world_size)[rank]))
    expected = m_sharpness(2, world_size if local else 1)
    torch.testing.assert_close([p.detach() for p in model.parameters()], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("local", [False, True])
def test_two_ranks_climb_together_or_each_alone(local: bool, tmp_path: Path) -> None:
    run_ranks(train_on_ranks, 2, tmp_path, local)
    together, alone = m_sharpness(2, 1), m_sharpness(2, 2)
    assert not torch.allclose(together[0], alone[0], rtol=1e-6)  # the two can be told apart
