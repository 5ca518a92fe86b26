"""Every kernel of a device once, at small odd sizes: what compute-sanitizer is run over.

    compute-sanitizer --tool memcheck python -m tests.every_kernel

Results must be finite; whether they are right is for the other tests. `--device cpu` calls the C++ kernels.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_fast import knn_topk, sinkhorn
from ssl_fast.data.engine_fused import FusedEngine
from ssl_fast.data.engine_fused_gpu import FusedGpuEngine
from ssl_fast.data.view_presets import simclr, swav
from ssl_fast.data.views import View
from ssl_fast.data.views import draw as views_drawn
from ssl_fast.ops.dispatch import OPS
from ssl_fast.ops.gradients import centralize_gradients_, clip_grad_norm_, global_norm
from ssl_fast.ops.lamb import lamb_step_
from ssl_fast.ops.multi_tensor import ema_update_, lars_step_, lookahead_update_
from ssl_fast.ops.sam import sam_adamw_step_, sam_ascend_, sam_sgd_step_
from tests.ops.triton.cases import CASES

SHAPES = [(), (7,), (0,), (33, 65), (5, 3, 3, 3), (3, 700)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Calls:
    """Names of the native module's functions that were called, and those that were not."""

    def __init__(self, device: str) -> None:
        self.module = importlib.import_module("ssl_fast._cuda" if device == "cuda" else "ssl_fast._cpu")
        self.missing = {name for name in dir(self.module) if callable(getattr(self.module, name)) and name[0] != "_"}
        for name in self.missing.copy():
            setattr(self.module, name, self._counted(name, getattr(self.module, name)))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.missing.discard(name)
            return function(*args, **options)

        return call


def draw(dtype: torch.dtype, device: str, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for s in SHAPES]


def steps(device: str, dtype: torch.dtype, impl: str) -> Iterable[Tensor]:
    """Every update of many tensors."""
    p, g, s, q, buffers = (draw(dtype, device, seed) for seed in (1, 2, 3, 4, 5))
    m = [x.to(torch.promote_types(dtype, torch.float32)) for x in draw(dtype, device, 6)]
    v = [x.square() for x in m]
    norm = global_norm(g, impl=impl)
    for adaptive in (False, True):
        sam_ascend_(q, g, s, norm=norm, rho=0.5, adaptive=adaptive, impl=impl)
    sam_sgd_step_(q, s, g, buffers, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, impl=impl)
    sam_adamw_step_(q, s, g, buffers, [x.square() for x in buffers], step=1, lr=0.1, impl=impl)
    lamb_step_(p, g, m, v, step=3, lr=0.1, impl=impl)
    lookahead_update_(p, q, 0.3, impl=impl)
    ema_update_(p, q, 0.9, impl=impl)
    lars_step_(p, g, m, lr=0.1, momentum=0.9, weight_decay=1e-4, impl=impl)
    centralize_gradients_(g, impl=impl)
    leaves = [torch.nn.Parameter(x) for x in p]
    for leaf, gradient in zip(leaves, g, strict=True):
        leaf.grad = gradient * 100
    return [*p, *q, *m, *buffers, *g, norm, clip_grad_norm_(leaves, 1.0, impl=impl)]


def views(device: str, dtype: torch.dtype, impl: str) -> Iterable[Tensor]:
    """Views with every operation, of pictures of two sizes, in colour and grey."""
    colour = [*simclr(17), *swav()[-1:], View(size=20, interpolation="bicubic", solarize=1.0, blur=1.0)]
    for several, mean in ((colour, (0.5,) * 3), ([View(size=9, blur=1.0)], (0.5,))):
        chosen = [replace(view, mean=mean, std=mean) for view in several]
        sizes = np.array([(31, 40), (12, 9)])
        images = [torch.randint(256, (h, w, len(mean)), dtype=torch.uint8) for h, w in sizes.tolist()]
        table = views_drawn(chosen, 0, 0, np.arange(2), sizes)
        if impl == "cpp":
            yield from FusedEngine(chosen, len(mean), dtype)([image.numpy() for image in images], table)
            continue
        for layout in (torch.channels_last, torch.contiguous_format):
            engine = FusedGpuEngine(chosen, len(mean), torch.device(device), dtype, layout)
            yield from engine([image.to(device) for image in images], table)


def losses(device: str, dtype: torch.dtype, impl: str) -> Iterable[Tensor]:
    """Every op with rows, and its gradients."""
    for make in CASES.values():
        case = make(False)
        inputs = [x.detach().to(device, dtype).requires_grad_(x.requires_grad) for x in case.inputs]
        value = case.ours(*inputs, impl=impl if impl in OPS[case.op] else "auto")
        yield value.detach()
        yield from torch.autograd.grad(value.sum(), [x for x in inputs if x.requires_grad])
    rows = torch.randn(65, 20).to(device, dtype)
    yield sinkhorn(rows, impl=impl)
    yield knn_topk(rows, rows, 5)[0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--only", default="all", choices=["all", "native", "triton"], help="which kernels")
    args = parser.parse_args(arguments)
    native, rows = ("cuda", "triton") if args.device == "cuda" else ("cpp", "cpp")
    calls = Calls(args.device)
    count = 0
    for dtype in DTYPES:
        found: list[Tensor] = []
        if args.only != "triton":
            found += steps(args.device, dtype, native)
            found += views(args.device, dtype, native) if dtype != torch.float64 else []
        if args.only != "native" and dtype != torch.float64:
            found += losses(args.device, dtype, rows)
        if args.device == "cuda":
            torch.cuda.synchronize()
        assert all(x.isfinite().all() for x in found), dtype
        count += len(found)
    if args.device == "cuda" and args.only != "triton" and calls.missing:
        sys.exit(f"not called: {', '.join(sorted(calls.missing))}")
    print(f"{count} tensors, all finite")


if __name__ == "__main__":
    main()
