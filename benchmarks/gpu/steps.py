"""The optimiser steps of the book: ours, torch's foreach forms and timm's, on the parameters of two networks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops.bench_multi_tensor import BYTES as MULTI_TENSOR_BYTES
from benchmarks.ops.bench_multi_tensor import ema_contenders, lars_contenders
from benchmarks.ops.bench_optimizer_steps import BYTES as OPTIMIZER_BYTES
from benchmarks.ops.bench_optimizer_steps import contenders, copies
from ssl_fast.ops.dispatch import backends

BYTES = {**OPTIMIZER_BYTES, **MULTI_TENSOR_BYTES}  # per parameter
OPS = ("sam sgd", "lars", "lamb", "ema", "lookahead", "centralize", "clip", "adamw")


def resnet50_shapes() -> Iterator[tuple[int, ...]]:
    """The 161 parameters: no package that knows them need be installed."""

    def convolution(into: int, out: int, size: int) -> Iterator[tuple[int, ...]]:
        yield from ((out, into, size, size), (out,), (out,))  # with its batch normalisation

    yield from convolution(3, 64, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(into, width, 1)
            yield from convolution(width, width, 3)
            yield from convolution(width, 4 * width, 1)
            if block == 0:
                yield from convolution(into, 4 * width, 1)
            into = 4 * width
    yield from ((1000, 2048), (1000,))


def vit_base_shapes() -> Iterator[tuple[int, ...]]:
    """The 152 parameters of ViT-B/16 at 224 px."""
    width, hidden = 768, 3072
    yield from ((1, 1, width), (1, 197, width), (width, 3, 16, 16), (width,))
    for _ in range(12):
        yield from ((width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,))
        yield from ((width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,))
    yield from ((width,), (width,), (1000, width), (1000,))


MODELS = {"resnet50": resnet50_shapes, "vit_base": vit_base_shapes}


def parameters(model: str, device: str, small: bool) -> list[Tensor]:
    """Random ones; a tenth of the width where `small`."""
    shapes = [tuple(max(1, n // 10) for n in shape) if small else shape for shape in MODELS[model]()]
    return [torch.randn(shape, device=device) * 0.05 for shape in shapes]


def providers(op: str, params: list[Tensor]) -> dict[str, Callable[[], object]]:
    """By name, one step of each provider that can run here."""
    device = params[0].device.type
    native = "cuda" if device == "cuda" else "cpp"
    usable = [impl for impl in (native, "reference") if backends()["multi_tensor"][impl] == "available"]
    if op in ("ema", "lars"):
        table = (ema_contenders if op == "ema" else lars_contenders)(params, usable)
        return {name: run for (of, name), run in table.items() if of == op}
    makers = contenders(native, _timm())
    found = {name: make for (of, name), make in makers.items() if of == op}
    ready = (n for n in found if ("timm" not in n or _timm()) and (native not in n.split() or native in usable))
    return {name: found[name](copies(params)) for name in ready}


def _timm() -> Any:
    try:
        import timm.optim
    except ImportError:
        return None
    return timm.optim
