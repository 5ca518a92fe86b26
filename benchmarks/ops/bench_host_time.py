"""What a small call costs on the host: every loss at 8 samples of 16 numbers, one thread, beside an empty Function.

    python -m benchmarks.ops.bench_host_time

At this size a kernel takes a few microseconds, so the time is that of Python, torch's dispatcher and autograd. The
empty Function is an autograd.Function of two inputs that computes nothing, keeps both and their gradients, and hands
these out: what no recorded op can go below. The kernel alone is the same Function around nt_xent's kernel, without one
check or choice: what no op of ours can. `forward` is without gradients (of these two: with their recording).
Providers take turns; each number is the median of all rounds, of the processor's time in this process: what else the
machine does plays less of a part. `over_empty_us` is what an op adds, `over_empty` that as a part of the Function's.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ssl_fast as sf
from benchmarks.record import write
from ssl_fast.ops.cpp import module

SAMPLES, DIM, CLASSES, QUEUE = 8, 16, 10, 32
Loss = Callable[[Tensor, Tensor], Tensor]


class Empty(torch.autograd.Function):
    """Two inputs, a scalar, gradients that are there."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, torch.empty_like(a), torch.empty_like(b))
        return a.new_empty(())

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor, Tensor]:
        _, _, da, db = ctx.saved_tensors
        return da, db


class KernelAlone(torch.autograd.Function):
    """NT-Xent of two views by the bare binding, for these very sizes."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        value, da, db = a.new_empty(()), torch.empty_like(a), torch.empty_like(b)
        options = (2, None, -100, None, 10.0, True, False, True)
        module().self_contrast(a, b, 0, 2 * SAMPLES, DIM, *options, value, da, db, None, None, 1)
        ctx.save_for_backward(a, b, da, db)
        return value

    backward = Empty.backward


def inputs(op: str) -> tuple[Tensor, Tensor]:
    """What the loss takes and has gradients of: two matrices [N, D], or stacked views as logits."""
    if op in ("dino_loss", "swav_loss"):
        return torch.randn(2, SAMPLES, DIM), torch.randn(1, SAMPLES, DIM)
    return torch.randn(SAMPLES, DIM), torch.randn(SAMPLES, DIM)


def losses() -> dict[str, Callable[..., Tensor]]:
    """Each takes its two inputs and `impl`."""
    queue = F.normalize(torch.randn(QUEUE, DIM), dim=1)
    classes, labels = torch.randn(CLASSES, DIM), torch.arange(SAMPLES)
    pairs, number = labels // 2, torch.tensor(1.0)
    masks = torch.ones(2, SAMPLES // 2, dtype=torch.bool)
    return {
        "nt_xent": sf.nt_xent,
        "dcl": sf.dcl,
        "supcon": lambda a, b, impl: sf.supcon(a, pairs, impl=impl),
        "info_nce": lambda a, b, impl: sf.info_nce(a, b, queue, impl=impl),
        "clip_loss": partial(sf.clip_loss, logit_scale=10.0),
        "siglip_loss": partial(sf.siglip_loss, logit_scale=10.0, logit_bias=-10.0),
        "arcface": lambda a, b, impl: sf.arcface(a, classes, labels, impl=impl),
        "adaface": lambda a, b, impl: sf.adaface(a, classes, labels, norm_mean=number, norm_std=number, impl=impl),
        "curricularface": lambda a, b, impl: sf.curricularface(a, classes, labels, hardness=number, impl=impl),
        "dino_loss": sf.dino_loss,
        "ibot_loss": lambda a, b, impl: sf.ibot_loss(a, b, masks, impl=impl),
        "swav_loss": lambda a, b, impl: sf.swav_loss(a, impl=impl),
        "byol_loss": sf.byol_loss,
        "vicreg": sf.vicreg,
        "barlow_twins": sf.barlow_twins,
    }


def providers(op: str, loss: Callable[..., Tensor]) -> dict[str, Loss]:
    implemented = "cpp" if sf.backends().get(op, {}).get("cpp") == "available" else None
    impls = ("auto",) if implemented is None else (implemented, "auto")
    return {f"ssl_fast {impl}": partial(loss, impl=impl) for impl in impls}


def microseconds(call: Callable[[], Any], repeats: int) -> float:
    begin = time.process_time_ns()
    for _ in range(repeats):
        call()
    return (time.process_time_ns() - begin) / repeats / 1000


def both(loss: Loss, a: Tensor, b: Tensor) -> None:
    a.grad = b.grad = None
    loss(a, b).backward()  # type: ignore[no-untyped-call]


def measure(rounds: int, repeats: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    plain = {op: inputs(op) for op in ("none", *losses())}
    leaves = {op: tuple(t.clone().requires_grad_() for t in given) for op, given in plain.items()}
    contenders: dict[tuple[str, str], Loss] = {("none", "empty Function"): Empty.apply}
    if sf.backends()["nt_xent"]["cpp"] == "available":
        contenders["none", "kernel alone"] = KernelAlone.apply
    contenders |= {(op, name): f for op, loss in losses().items() for name, f in providers(op, loss).items()}
    times: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        for (op, name), loss in contenders.items():
            forward = partial(loss, *(leaves if op == "none" else plain)[op])
            for direction, call in (("forward", forward), ("forward + backward", partial(both, loss, *leaves[op]))):
                times.setdefault((op, name, direction), []).append(microseconds(call, repeats))
    found = {key: median(values) for key, values in times.items()}
    return [
        {
            "op": op,
            "provider": name,
            "direction": direction,
            "us": round(value, 1),
            "over_empty_us": round(value - found["none", "empty Function", direction], 1),
            "over_empty": round(value / found["none", "empty Function", direction] - 1, 2),
        }
        for (op, name, direction), value in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--repeats", type=int, default=50, help="calls that one number of a round averages")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(args.rounds, args.repeats)
    for row in rows:
        print(
            "{op:14s}{provider:18s}{direction:20s}{us:8.1f} us {over_empty_us:+8.1f} {over_empty:+6.2f}".format(**row)
        )
    if not args.no_write:
        write("ops_host_time_cpu", rows)


if __name__ == "__main__":
    main()
