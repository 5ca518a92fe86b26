"""clip_loss, siglip_loss and info_nce among keys, forward and backward, beside open_clip and the plain forms.

    python -m benchmarks.ops.bench_two_towers --threads 2

Columns as in bench_contrastive; the gradients are left on the inputs, which exist before the count of memory begins.
The floor is the arithmetic (8 N^2 D for a normaliser of rows or columns, 6 N^2 D for siglip_loss) at the rate of
torch's own large square fp32 product in the same run.
"""

import argparse
import math
import multiprocessing
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.bench_contrastive import Step, _status, interleaved, matmul_rate
from benchmarks.record import write
from ssl_fast import clip_loss, info_nce, siglip_loss

SCALE, BIAS = math.log(1 / 0.07), -10.0  # as training begins; the scale is learned as its logarithm
FLOP = {"clip_loss": 8, "siglip_loss": 6, "info_nce among keys": 8}  # x N^2 D


def towers(rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Unit embeddings that agree as those of a half-trained model do (cosine about 0.7)."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(rows, dim, generator=generator), dim=1)
    noise = F.normalize(torch.randn(rows, dim, generator=generator), dim=1)
    return image, F.normalize(0.7 * image + 0.7 * noise, dim=1)


def differentiate(loss: Callable[..., Tensor], image: Tensor, text: Tensor) -> Step:
    """`loss(image, text, scale, bias)` forward and backward; the inputs are the same tensors every time."""
    leaves = [t.detach().requires_grad_() for t in (image, text)]
    dtype = torch.promote_types(image.dtype, torch.float32)
    leaves += [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (SCALE, BIAS)]

    def step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        loss(leaves[0], leaves[1], leaves[2].exp(), leaves[3]).backward()
        assert leaves[0].grad is not None
        return leaves[0].grad

    return step


def ours(op: str, impl: str) -> Callable[..., Tensor]:
    if op == "clip_loss":
        return lambda image, text, scale, bias: clip_loss(image, text, scale, impl=impl)
    if op == "siglip_loss":
        return lambda image, text, scale, bias: siglip_loss(image, text, scale, bias, impl=impl)
    return lambda image, text, scale, bias: info_nce(image, text, temperature=1 / scale, impl=impl)


def cross_entropy(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """MoCo v3's own form (Chen et al. 2021, Algorithm 1): logits [N, N], then cross-entropy with label i."""
    return F.cross_entropy(image @ text.T * scale, torch.arange(len(image)))


def peer(op: str) -> tuple[str, Callable[..., Tensor]]:
    if op == "info_nce among keys":
        return "plain cross-entropy", cross_entropy
    from open_clip.loss import ClipLoss, SigLipLoss

    if op == "siglip_loss":
        return "open_clip SigLipLoss", SigLipLoss()
    loss = ClipLoss()
    return "open_clip ClipLoss", lambda image, text, scale, bias: loss(image, text, scale)


def contenders(op: str, rows: int, dim: int) -> dict[str, Step]:
    image, text = towers(rows, dim)
    name, theirs = peer(op)
    return {
        "ssl_fast cpp": differentiate(ours(op, "cpp"), image, text),
        "ssl_fast cpp bf16 input": differentiate(ours(op, "cpp"), image.bfloat16(), text.bfloat16()),
        "ssl_fast reference": differentiate(ours(op, "reference"), image, text),
        name: differentiate(theirs, image, text),
    }


def peak_memory(op: str, rows: int, dim: int, name: str, threads: int) -> float:
    """MB that one step adds to the resident size at its highest, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(sending, op, rows, dim, name, threads))
    process.start()
    found: float = receiving.recv()
    process.join()
    return found


def _measure_memory(connection: Any, op: str, rows: int, dim: int, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    step = contenders(op, rows, dim)[name]
    contenders(op, 64, 64)[name]()  # code and threads are there before the count begins
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the high-water mark
    before = _status("VmRSS")
    step()
    connection.send((_status("VmHWM") - before) / 1024)


def tangent(gradient: Tensor, image: Tensor) -> Tensor:
    """The part across the unit rows: the peers leave the normalisation, and its derivative, to the caller."""
    gradient = gradient.double()
    return gradient - image * (gradient * image).sum(1, keepdim=True)


def measure(op: str, rows: int, dim: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    steps = contenders(op, rows, dim)
    truth = differentiate(ours(op, "reference"), *(t.double() for t in towers(rows, dim)))()
    image = towers(rows, dim)[0].double()
    times = interleaved(steps, rounds)
    floor = FLOP[op] * rows**2 * dim / matmul_rate() * 1e3
    found = []
    for name, values in times.items():
        cut = statistics.quantiles(values, n=5)
        error = ((tangent(steps[name](), image) - truth).norm() / truth.norm()).item()
        row = {"op": op, "provider": name, "sizes": f"{rows}x{dim}", "direction": "forward+backward"}
        row |= {"p20_ms": round(cut[0], 2), "p50_ms": round(statistics.median(values), 2), "p80_ms": round(cut[-1], 2)}
        row |= {"extra_mb": round(peak_memory(op, rows, dim, name, threads), 1), "gradient_error": f"{error:.1e}"}
        row |= {"floor_ms": round(floor, 1), "threads": threads}
        print(row, flush=True)
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--trial", action="store_true", help="print only, write no results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for op in FLOP for n in args.rows for row in measure(op, n, args.dim, args.rounds, args.threads)]
    if not args.trial:
        write("ops_two_towers_cpu", rows, ("open-clip-torch",))


if __name__ == "__main__":
    main()
