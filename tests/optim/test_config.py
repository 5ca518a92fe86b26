"""Parameter groups of a method, and what a step's schedule does to them."""

import pytest
from torch import nn

from ssl_fast.optim.config import OptimizerConfig, build_optimizer, parameter_groups, scheduled_


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def options(name: str, parameter: nn.Parameter) -> dict[str, object]:
    if name.startswith("0."):
        return {"lr_scale": 0.5}
    return {"fixed_lr": True, "decay": True} if name == "2.bias" else {}


def test_weights_decay_and_vectors_do_not() -> None:
    weights, vectors = parameter_groups(network().named_parameters(), 0.1)
    assert [p.ndim for p in weights["params"]] == [2, 2]
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1, 1]
    assert (weights["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert vectors["adapt"] is False
    assert "adapt" not in weights


def test_options_part_the_groups_and_every_parameter_is_in_one() -> None:
    model = network()
    groups = parameter_groups(model.named_parameters(), 0.1, options)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())
    of = {id(p): group for group in groups for p in group["params"]}
    assert of[id(model[0].weight)]["lr_scale"] == of[id(model[0].bias)]["lr_scale"] == 0.5
    assert of[id(model[2].bias)]["weight_decay"] == 0.1  # overruled
    assert "lr_scale" not in of[id(model[2].weight)]


def test_the_schedule_scales_spares_and_decays() -> None:
    model = network()
    optimizer = build_optimizer(
        OptimizerConfig(name="adamw", weight_decay=0.04), model.named_parameters(), 1.0, options=options
    )
    scheduled_(optimizer, 0.2, 1.0, 0.4)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert of[id(model[0].weight)]["lr"] == pytest.approx(0.1)
    assert of[id(model[2].weight)]["lr"] == pytest.approx(0.2)
    assert of[id(model[2].bias)]["lr"] == 1.0
    assert of[id(model[2].weight)]["weight_decay"] == of[id(model[2].bias)]["weight_decay"] == 0.4
    assert of[id(model[1].weight)]["weight_decay"] == 0.0


def test_an_option_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"options of 0\.weight: expected lr_scale, fixed_lr or decay, got 'lr'"):
        parameter_groups(network().named_parameters(), 0.1, lambda name, parameter: {"lr": 1.0})
