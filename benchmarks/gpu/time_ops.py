"""Times nt_xent, info_nce, LARS and EMA on a GPU beside their eager and compiled references, interleaved.

    python -m benchmarks.gpu.time_ops --rounds 30

Forward and backward, bf16 embeddings, CUDA events, medians. Floors: arithmetic (4 R^2 D or 4 B K D) over the rate of
a large bf16 product measured in the same run; for LARS and EMA see benchmarks/ops/bench_multi_tensor.py.
"""

import argparse
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.bench_multi_tensor import ema_contenders, lars_contenders, measure, percent_of_floor, resnet
from benchmarks.record import write
from ssl_fast import info_nce, nt_xent
from ssl_fast.ops.dispatch import backends
from ssl_fast.ops.info_nce import info_nce_reference
from ssl_fast.ops.nt_xent import nt_xent_reference

DIM = 128
ROWS = (1024, 4096, 8192, 32768)
BATCHES, QUEUE = (256, 512, 1024, 4096), 65536

Table = dict[tuple[str, str], Callable[[], object]]


def draw(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, device="cuda"), dim=-1).bfloat16()


def differentiated(loss: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    return lambda: torch.autograd.grad(loss(*leaves), leaves)


def nt_xent_contenders(rows: int) -> Table:
    z1, z2 = draw(rows // 2, DIM), draw(rows // 2, DIM)
    op, compiled = f"nt_xent {rows} rows", torch.compile(nt_xent_reference)
    return {
        (op, "ssl_fast"): differentiated(lambda a, b: nt_xent(a, b, temperature=0.1), z1, z2),
        (op, "eager reference"): differentiated(lambda a, b: nt_xent_reference(a, b, 0.1), z1, z2),
        (op, "compiled reference"): differentiated(lambda a, b: compiled(a, b, 0.1), z1, z2),
    }


def info_nce_contenders(batch: int) -> Table:
    q, k, queue = draw(batch, DIM), draw(batch, DIM), draw(QUEUE, DIM)
    op, compiled = f"info_nce B={batch} K={QUEUE}", torch.compile(info_nce_reference)
    return {
        (op, "ssl_fast"): differentiated(lambda a: info_nce(a, k, queue, temperature=0.07), q),
        (op, "eager reference"): differentiated(lambda a: info_nce_reference(a, k, queue, temperature=0.07), q),
        (op, "compiled reference"): differentiated(lambda a: compiled(a, k, queue, temperature=0.07), q),
    }


def flops_per_millisecond(rounds: int) -> float:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    row = measure({("product", ""): lambda: a @ b}, rounds, "cuda")[0]
    return 2 * 8192**3 / float(str(row["best_ms"]))


def contrastive_rows(rounds: int) -> list[dict[str, object]]:
    rate, result = flops_per_millisecond(rounds), []
    sizes = [(nt_xent_contenders(n), 4 * n * n * DIM) for n in ROWS]
    sizes += [(info_nce_contenders(b), 4 * b * QUEUE * DIM) for b in BATCHES]
    for table, flops in sizes:
        for row in measure(table, rounds, "cuda"):
            result.append({**row, "floor_percent": 100 * flops / rate / float(str(row["ms"]))})
    return result


def multi_tensor_rows(rounds: int) -> list[dict[str, object]]:
    params = [p.cuda() for p in resnet()]
    usable = [impl for impl in ("cuda", "reference") if backends()["multi_tensor"][impl] == "available"]
    rows = measure({**ema_contenders(params, usable), **lars_contenders(params, usable)}, rounds, "cuda")
    return percent_of_floor(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        print("benchmarks/gpu/time_ops.py: no CUDA device is visible to torch", file=sys.stderr)
        raise SystemExit(2)
    rows = [*contrastive_rows(rounds), *multi_tensor_rows(rounds)]
    for row in rows:
        print(f"{row['op']:<26}{row['implementation']:<24}{row['ms']:9.3f} ms {row['floor_percent']:5.0f} % of floor")
    write("gpu_ops", rows)


if __name__ == "__main__":
    main()
