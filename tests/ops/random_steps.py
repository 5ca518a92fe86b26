"""Random small lists of tensors for the steps of optimisers, every implementation against float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssl_fast.ops.gradients import centralize_gradients_, clip_grad_norm_, global_norm
from ssl_fast.ops.lamb import lamb_step_
from ssl_fast.ops.multi_tensor import ema_update_, lars_step_, lookahead_update_
from ssl_fast.ops.sam import sam_adamw_step_, sam_ascend_, sam_sgd_step_
from tests.ops.conftest import usable
from tests.ops.lists import assert_within_rounding
from tests.ops.random_draw import Draw

Lists = list[list[Tensor]]


def _lists(d: Draw, count: int, *, wide: int = 0, positive: bool = False) -> Lists:
    """`count` lists of the same shapes in the case's dtype; the last `wide` in at least fp32; the last one > 0."""
    shapes = [tuple(d.size() for _ in range(d.pick(0, 1, 1, 2, 2, 3))) for _ in range(d.pick(0, 1, 3, 6))]
    layouts = [d.layout() for _ in shapes]
    found = []
    for index in range(count):
        dtype = torch.promote_types(d.dtype, torch.float32) if index >= count - wide else d.dtype
        last = positive and index == count - 1
        drawn = [d.uniform(*s) + 0.01 if last else d.normal(*s) for s in shapes]
        found.append([layout(t.to(dtype)) for layout, t in zip(layouts, drawn, strict=True)])
    return found


def _copied(lists: Lists, dtype: torch.dtype | None = None) -> Lists:
    """In the same layouts."""
    return [[torch.empty_strided(t.shape, t.stride(), dtype=dtype or t.dtype).copy_(t) for t in ts] for ts in lists]


def _judge(op: str, step: Callable[..., Any], lists: Lists, /, **options: Any) -> None:
    """`step(*lists, impl=..., **options)` changes the lists in place as it does in float64."""
    exact = _copied(lists, torch.float64)
    step(*exact, impl="reference", **options)
    for impl in usable(op):
        mine = _copied(lists)
        try:
            step(*mine, impl=impl, **options)
            for found, wanted in zip(mine, exact, strict=True):
                assert_within_rounding(found, wanted)
        except Exception as error:
            shapes = [list(t.shape) for t in lists[0]]
            raise AssertionError(f"{step.__name__} {impl} of {shapes} with {options}: {error!r}") from error


def sam_case(d: Draw) -> None:
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": d.pick(0.0, 0.05)}
    kind = d.pick("ascend", "sgd", "adamw")
    if kind == "ascend":
        lists = _lists(d, 3)
        norm = global_norm([t.double() for t in lists[1]])
        _judge("sam", sam_ascend_, lists, norm=norm, rho=0.5, adaptive=d.pick(True, False))
    elif kind == "sgd":
        momentum = d.pick(0.0, 0.9)
        lists = _lists(d, 4) if momentum else [*_lists(d, 3), []]
        _judge(
            "sam", sam_sgd_step_, lists, momentum=momentum, nesterov=bool(momentum) and d.pick(True, False), **options
        )
    else:
        _judge("sam", sam_adamw_step_, _lists(d, 5, positive=True), step=d.random.randint(1, 1000), **options)


def lamb_case(d: Draw) -> None:
    options = {"step": d.random.randint(1, 1000), "lr": 0.1, "weight_decay": d.pick(0.0, 0.05)}
    options |= {"bias_correction": d.pick(True, False), "clip": d.pick(True, False)}
    _judge("lamb", lamb_step_, _lists(d, 4, wide=2, positive=True), **options)


def lars_case(d: Draw) -> None:
    options = {"lr": 0.3, "trust_coefficient": d.pick(0.001, 0.1), "weight_decay": d.pick(0.0, 0.01)}
    options |= {"nesterov": d.pick(True, False), "clip": d.pick(True, False)}
    _judge("multi_tensor", lars_step_, _lists(d, 3, wide=1), **options)


def lookahead_case(d: Draw) -> None:
    _judge("multi_tensor", lookahead_update_, _lists(d, 2), alpha=d.pick(0.0, 0.3, 1.0))


def ema_case(d: Draw) -> None:
    targets, sources = _lists(d, 2)
    if d.pick(True, False):
        sources = [t.to(d.pick(torch.float32, torch.bfloat16, torch.float64)) for t in sources]
    _judge("multi_tensor", ema_update_, [targets, sources], momentum=d.pick(0.0, 0.9, 0.996, 1.0))


def _clip(grads: list[Tensor], max_norm: float, impl: str) -> None:
    params = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    norm = clip_grad_norm_(params, max_norm, impl=impl)
    exact = sum(float(g.double().square().sum()) for g in grads) ** 0.5
    assert exact <= max_norm * (1 + 1e-2) + 1e-6 and norm >= exact * (1 - 1e-2)


def clip_case(d: Draw) -> None:
    _judge("gradients", _clip, _lists(d, 1), max_norm=d.pick(0.1, 10.0))


def centralize_case(d: Draw) -> None:
    _judge("gradients", centralize_gradients_, _lists(d, 1))


STEPS: dict[str, Callable[[Draw], None]] = {
    "sam": sam_case,
    "lamb": lamb_case,
    "lars": lars_case,
    "lookahead": lookahead_case,
    "ema": ema_case,
    "clip": clip_case,
    "centralize": centralize_case,
}
