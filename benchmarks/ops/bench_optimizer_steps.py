"""SAM, LAMB, Lookahead, gradient centralisation and clipping on the parameters of a ResNet-50, beside the field.

    python -m benchmarks.ops.bench_optimizer_steps --threads 2

On a CPU, or on a GPU with `--device cuda`; interleaved, medians. Peers: timm's Lamb and Lookahead from its package,
torch's own clip_grad_norm_, SGD and AdamW, and for SAM, which has no package of its own, two forms written here: tensor
by tensor, as the well-known implementations are, and with torch's foreach functions. A step of SAM is timed without its
two backward passes: the closure does nothing.

The floor is the bytes that must move, over the best bandwidth that `lerp_` of one tensor as large as the model reaches
in the same run. `extra_mb` is what the first call adds to the resident size at its highest (to the allocated memory on
a GPU): state and temporaries; a copy of the model is 102 MB. `error` is the largest difference of a parameter or
gradient, after the first call, from the same call in float64.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ops.bench_multi_tensor import random_like, resnet, run
from benchmarks.ops.measure import Table, added_mb, in_a_fresh_process
from ssl_fast.ops.gradients import centralize_gradients_, clip_grad_norm_
from ssl_fast.ops.multi_tensor import lookahead_update_
from ssl_fast.optim import LAMB, SAM

# Bytes per parameter. SAM: the norm 4, up 16, down 20 (SGD) or 28. LAMB: p, g, m, v in, m, v out; p, m, v in, p out.
BYTES = {
    "sam sgd": 40,
    "sam adamw": 48,
    "lamb": 40,
    "lookahead": 16,
    "centralize": 8,
    "clip": 12,
    "sgd": 20,
    "adamw": 28,
}
SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
ADAMW = {"lr": 1e-3, "weight_decay": 1e-2}


class SamByTensor:
    """One tensor after another, each with temporaries of its own: how SAM is usually written."""

    def __init__(self, params: list[nn.Parameter], base: torch.optim.Optimizer) -> None:
        self.params, self.base = params, base

    @torch.no_grad()
    def step(self) -> None:
        norm = torch.stack([p.grad.norm() for p in self.params]).norm()
        saved = []
        for p in self.params:
            saved.append(p.clone())
            p.add_(p.grad * (0.05 / (norm + 1e-12)))
        for p, s in zip(self.params, saved, strict=True):
            p.copy_(s)
        self.base.step()


class SamByForeach:
    """The same with torch's foreach functions and a saved copy that is kept."""

    def __init__(self, params: list[nn.Parameter], base: torch.optim.Optimizer) -> None:
        self.params, self.base = params, base
        self.saved = [torch.empty_like(p, requires_grad=False) for p in params]

    @torch.no_grad()
    def step(self) -> None:
        grads = [p.grad for p in self.params]
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        torch._foreach_copy_(self.saved, self.params)
        torch._foreach_add_(self.params, torch._foreach_mul(grads, 0.05 / (norm + 1e-12)))
        torch._foreach_copy_(self.params, self.saved)
        self.base.step()


def copies(params: list[Tensor], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """The model once more, with the same random gradients each time."""
    own = [nn.Parameter(p.to(dtype)) if dtype != p.dtype else nn.Parameter(p.clone()) for p in params]
    torch.manual_seed(0)
    for p, g in zip(own, random_like(params), strict=True):
        p.grad = (g * 1e-3).to(dtype)
    return own


def contenders(impl: str, timm: Any) -> dict[tuple[str, str], Callable[[list[nn.Parameter]], Callable[[], object]]]:
    """By op and implementation: what makes, from parameters with gradients, the call that is timed."""

    def sam(base: Any, options: dict[str, Any], impl: str) -> Callable[[list[nn.Parameter]], Callable[[], object]]:
        def make(params: list[nn.Parameter]) -> Callable[[], object]:
            optimizer = SAM(params, base, impl=impl, replay_random=False, **options)
            return lambda: optimizer.step(lambda: 0.0)

        return make

    def lookahead(
        params: list[nn.Parameter], run: Callable[[list[Tensor], list[Tensor]], None]
    ) -> Callable[[], object]:
        fast, slow = [p.detach() for p in params], [p.grad for p in params]
        return lambda: run(fast, slow)

    def foreach_lookahead(fast: list[Tensor], slow: list[Tensor]) -> None:
        torch._foreach_lerp_(slow, fast, 0.5)
        torch._foreach_copy_(fast, slow)

    def timm_lookahead(params: list[nn.Parameter]) -> Callable[[], object]:
        return timm.Lookahead(torch.optim.SGD(params, lr=0.0), k=1).sync_lookahead

    def centralize_by_tensor(params: list[nn.Parameter]) -> Callable[[], object]:
        grads = [p.grad for p in params if p.ndim > 1]

        def run() -> None:
            for g in grads:
                g.sub_(g.mean(dim=tuple(range(1, g.ndim)), keepdim=True))

        return run

    sgd, adamw = torch.optim.SGD, torch.optim.AdamW
    table: dict[tuple[str, str], Callable[[list[nn.Parameter]], Callable[[], object]]] = {}
    for op, base, options in (("sam sgd", sgd, SGD), ("sam adamw", adamw, ADAMW)):
        table[op, "by tensor"] = lambda p, b=base, o=options: SamByTensor(p, b(p, foreach=False, **o)).step
        table[op, "foreach"] = lambda p, b=base, o=options: SamByForeach(p, b(p, foreach=True, **o)).step
        for name in (impl, "reference"):
            table[op, f"ssl_fast {name}"] = sam(base, options, name)
    table["lamb", "timm Lamb"] = lambda p: (
        timm.Lamb(p, lr=1e-3, max_grad_norm=None, always_adapt=True, foreach=False).step
    )
    table["lamb", "timm Lamb foreach"] = lambda p: (
        timm.Lamb(p, lr=1e-3, max_grad_norm=None, always_adapt=True, foreach=True).step
    )
    table["lookahead", "timm Lookahead"] = timm_lookahead
    table["lookahead", "foreach"] = lambda p: lookahead(p, foreach_lookahead)
    table["centralize", "by tensor"] = centralize_by_tensor
    table["clip", "torch"] = lambda p: lambda: torch.nn.utils.clip_grad_norm_(p, 1e-3)
    for name in (impl, "reference"):
        table["lamb", f"ssl_fast {name}"] = lambda p, i=name: LAMB(p, lr=1e-3, adapt=True, impl=i).step
        table["lookahead", f"ssl_fast {name}"] = lambda p, i=name: lookahead(
            p, lambda fast, slow: lookahead_update_(fast, slow, impl=i)
        )
        table["centralize", f"ssl_fast {name}"] = lambda p, i=name: (
            lambda: centralize_gradients_([q.grad for q in p], impl=i)
        )
        table["clip", f"ssl_fast {name}"] = lambda p, i=name: lambda: clip_grad_norm_(p, 1e-3, impl=i)
    table["sgd", "torch SGD foreach"] = lambda p: sgd(p, foreach=True, **SGD).step
    table["adamw", "torch AdamW foreach"] = lambda p: adamw(p, foreach=True, **ADAMW).step
    table["adamw", "torch AdamW fused"] = lambda p: adamw(p, fused=True, **ADAMW).step
    return table


def error_of(make: Callable[[list[nn.Parameter]], Callable[[], object]], params: list[Tensor]) -> float:
    """Largest difference of parameters and gradients after one call from the same in float64."""
    low, high = copies(params), copies(params, torch.float64)
    make(low)()
    make(high)()
    pairs = zip([*low, *(p.grad for p in low)], [*high, *(p.grad for p in high)], strict=True)
    return max(float((a.detach().double() - b.detach()).abs().max()) for a, b in pairs)


def extra_mb(op: str, name: str, model: str, device: str) -> float:
    """MB that the first call of an implementation adds at its highest."""
    torch.set_num_threads(1)
    make = makers(op, device)[name]
    make(copies([torch.ones(8, 8, device=device)]))()  # code is there before the count begins
    call = make(copies([p.to(device) for p in resnet(model)]))
    if device == "cpu":
        return added_mb(call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def makers(op: str, device: str) -> dict[str, Callable[[list[nn.Parameter]], Callable[[], object]]]:
    import timm.optim

    table = contenders("cuda" if device == "cuda" else "cpp", timm.optim)
    return {name: make for (kind, name), make in table.items() if kind == op}


def steps(op: str, model: str, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """The contenders of one op, each on parameters of its own."""
    params = [p.to(device) for p in resnet(model)]
    return {name: make(copies(params)) for name, make in makers(op, device).items()}


def judged(op: str, name: str, model: str, device: str) -> dict[str, object]:
    if op == "floor":
        return {"error": 0.0, "extra_mb": 0.0}
    error = error_of(makers(op, device)[name], [p.to(device) for p in resnet(model)])
    return {"error": error, "extra_mb": in_a_fresh_process(extra_mb, op, name, model, device)}


CONTENDERS = {op: Table(functools.partial(steps, op), [("resnet50",)], ("resnet18",)) for op in BYTES}


if __name__ == "__main__":
    run(__doc__, "optimizer_steps", CONTENDERS, BYTES, ("timm",), judged)
