import math
from itertools import pairwise

import pytest

from ssl_fast.optim.schedule import cosine_momentum, scaled_lr, warmup_cosine


def test_warm_up_rises_linearly_to_the_base_and_the_cosine_falls_to_the_final_rate():
    rates = [warmup_cosine(step, 100, 10, 2.0, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(2.0 / 11)
    steps = [b - a for a, b in pairwise(rates[:11])]
    assert steps == pytest.approx([2.0 / 11] * 10)
    assert rates[10] == max(rates) == 2.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx((2.0 + 0.1) / 2)  # half of the cosine
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [0, 5, 10])
def test_every_rate_lies_between_zero_and_the_base(warmup: int):
    assert all(0 <= warmup_cosine(step, 10, warmup, 0.5) <= 0.5 for step in range(11))


def test_a_schedule_that_is_all_warm_up_ends_at_the_base():
    assert warmup_cosine(4, 4, 4, 3.0) == 3.0


@pytest.mark.parametrize(
    ("step", "total", "warmup", "named"),
    [(-1, 10, 0, "step"), (11, 10, 0, "step"), (0, 0, 0, "total"), (0, 4, 5, "warmup")],
)
def test_steps_outside_the_run_are_refused(step: int, total: int, warmup: int, named: str):
    with pytest.raises(ValueError, match=named):
        warmup_cosine(step, total, warmup, 1.0)


def test_momentum_follows_the_paper():
    total, base = 300, 0.996
    for k in (0, 1, 150, 299, 300):
        expected = 1 - (1 - base) * (math.cos(math.pi * k / total) + 1) / 2
        assert cosine_momentum(k / total, base) == pytest.approx(expected, abs=1e-15)
    assert cosine_momentum(1.0, base) == 1.0


@pytest.mark.parametrize(("progress", "base"), [(-0.1, 0.9), (1.1, 0.9), (0.5, 1.5)])
def test_momentum_outside_its_range_is_refused(progress: float, base: float):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        cosine_momentum(progress, base)


def test_both_rules_of_simclr_agree_at_4096_and_with_the_paper():
    assert scaled_lr(0.3, 4096) == pytest.approx(4.8)
    for batch in (256, 1000, 4096):
        assert scaled_lr(1.2, batch, "sqrt") == pytest.approx(0.075 * math.sqrt(batch))
    assert scaled_lr(0.3, 999, "none") == 0.3


def test_unknown_rule_and_empty_batch_are_refused():
    with pytest.raises(ValueError, match="linear, sqrt, none"):
        scaled_lr(1.0, 256, "cubic")
    with pytest.raises(ValueError, match="batch_size"):
        scaled_lr(1.0, 0)
