"""nt_xent and info_nce, forward and backward, beside lightly, the plain forms and our reference, interleaved.

    python -m benchmarks.ops.bench_contrastive --threads 2

Milliseconds are p20, p50, p80 over rounds in which every contender runs once, in turning order; the first round is not
counted. Memory is the highest resident size during one step minus that before it, in a process of its own. The error
is that of the gradient against float64, norm-wise (of inputs as they were before any rounding to bf16). The floor is
the arithmetic (4 R^2 D for nt_xent over R rows, 4 B K D for info_nce) at the rate of torch's own large square fp32
product in the same run, which a kernel of its own may beat.
"""

import argparse
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import write
from ssl_fast import info_nce, nt_xent

DIM, TEMPERATURE = 128, 0.1
Step = Callable[[], Tensor]  # one forward and backward; returns the gradient of the first input
Contenders = Callable[..., dict[str, Step]]  # by name, for the sizes of an op


def aligned(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views whose embeddings agree as those of a half-trained network do (cosine about 0.7)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, DIM, generator=generator)
    return z, 0.7 * z + 0.7 * torch.randn(rows, DIM, generator=generator)


def differentiate(loss: Callable[..., Tensor], first: Tensor, *others: Tensor) -> Step:
    def step() -> Tensor:
        x = first.clone().requires_grad_()
        rest = [other.clone().requires_grad_(other.shape == first.shape) for other in others]
        loss(x, *rest).backward()
        assert x.grad is not None
        return x.grad

    return step


def nt_xent_contenders(samples: int) -> dict[str, Step]:
    from lightly.loss import NTXentLoss

    z1, z2 = aligned(samples)
    lightly = NTXentLoss(temperature=TEMPERATURE)
    return {
        "ssl_fast cpp": differentiate(lambda a, b: nt_xent(a, b, temperature=TEMPERATURE, impl="cpp"), z1, z2),
        "ssl_fast cpp bf16 input": differentiate(
            lambda a, b: nt_xent(a, b, temperature=TEMPERATURE, impl="cpp"), z1.bfloat16(), z2.bfloat16()
        ),
        "ssl_fast reference": differentiate(
            lambda a, b: nt_xent(a, b, temperature=TEMPERATURE, impl="reference"), z1, z2
        ),
        "lightly NTXentLoss": differentiate(lightly, z1, z2),
    }


def concatenated(q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    """MoCo's own form: logits [B, 1 + K], then cross-entropy with label 0 (He et al. 2019, Algorithm 1)."""
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1).detach()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def info_nce_contenders(batch: int, size: int) -> dict[str, Step]:
    q, k = aligned(batch)
    queue = F.normalize(torch.randn(size, DIM, generator=torch.Generator().manual_seed(1)), dim=1)

    def ours(rows: Tensor) -> Callable[..., Tensor]:
        return lambda a, b: info_nce(a, b.detach(), rows, temperature=TEMPERATURE, impl="cpp")

    return {
        "ssl_fast cpp, fp32 queue": differentiate(ours(queue), q, k),
        "ssl_fast cpp, bf16 queue": differentiate(ours(queue.bfloat16()), q, k),
        "concatenated logits": differentiate(lambda a, b: concatenated(a, b, queue), q, k),
    }


def exact(contenders: str, *sizes: int) -> Tensor:
    """The gradient in float64, by the plain form."""
    if contenders == "nt_xent":
        z1, z2 = (z.double() for z in aligned(*sizes))
        return differentiate(lambda a, b: nt_xent(a, b, temperature=TEMPERATURE, impl="reference"), z1, z2)()
    q, k = (z.double() for z in aligned(sizes[0]))
    queue = F.normalize(torch.randn(sizes[1], DIM, generator=torch.Generator().manual_seed(1)), dim=1).double()
    return differentiate(lambda a, b: concatenated(a, b, queue), q, k)()


CONTENDERS: dict[str, Contenders] = {"nt_xent": nt_xent_contenders, "info_nce": info_nce_contenders}


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every round but the first, by contender."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.perf_counter()
            steps[name]()
            if number:
                times[name].append((time.perf_counter() - begun) * 1e3)
            gc.collect()
    return times


def peak_memory(contenders: Contenders, sizes: tuple[int, ...], name: str, threads: int) -> float:
    """MB that one step adds to the resident size at its highest, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(sending, contenders, sizes, name, threads))
    process.start()
    found: float = receiving.recv()
    process.join()
    return found


def _measure_memory(connection: Any, contenders: Contenders, sizes: tuple[int, ...], name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    step = contenders(*sizes)[name]
    small = contenders(*(64 for _ in sizes))[name]
    small()  # code and threads are there before the count begins
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the high-water mark
    before = _status("VmRSS")
    step()
    connection.send((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


def matmul_rate() -> float:
    """FLOP/s of a 2048 x 2048 x 2048 fp32 product, the best of ten."""
    a = torch.randn(2048, 2048)
    best = min(_seconds(lambda: a @ a) for _ in range(10))
    return 2 * 2048**3 / best


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def measure(
    op: str,
    contenders: Contenders,
    truth: Tensor,  # the gradient of the first input in float64
    sizes: tuple[int, ...],
    flop: float,
    rounds: int,
    threads: int,
) -> list[dict[str, Any]]:
    steps = contenders(*sizes)
    times = interleaved(steps, rounds)
    floor = flop / matmul_rate() * 1e3
    rows = []
    for name, values in times.items():
        cut = statistics.quantiles(values, n=5)
        error = ((steps[name]().double() - truth).norm() / truth.norm()).item()
        row = {"op": op, "provider": name, "sizes": "x".join(map(str, (*sizes, DIM))), "direction": "forward+backward"}
        row |= {"p20_ms": round(cut[0], 2), "p50_ms": round(statistics.median(values), 2), "p80_ms": round(cut[-1], 2)}
        row |= {"extra_mb": round(peak_memory(contenders, sizes, name, threads), 1), "gradient_error": f"{error:.1e}"}
        row |= {"floor_ms": round(floor, 1), "threads": threads}
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    cases = [("nt_xent", (samples,), 4 * (2 * samples) ** 2 * DIM) for samples in (512, 2048, 4096)]
    for op, sizes, flop in [*cases, ("info_nce", (256, 65536), 4 * 256 * 65536 * DIM)]:
        rows += measure(op, CONTENDERS[op], exact(op, *sizes), sizes, flop, args.rounds, args.threads)
    write("ops_contrastive_cpu", rows, ("lightly",))


if __name__ == "__main__":
    main()
