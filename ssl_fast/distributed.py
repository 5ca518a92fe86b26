"""Process groups: start one from torchrun's environment, and the few collectives that the package needs.

`group=None` means this process alone, everywhere: no communication takes place. `world()` is the group of all ranks.
"""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

Group = dist.ProcessGroup | None
T = TypeVar("T")


def initialize(device: str = "auto", timeout: timedelta = timedelta(hours=6)) -> torch.device:
    """Joins the ranks that torchrun started, if it did, and returns this rank's device.

    The group talks gloo on the CPU and NCCL on GPUs, so that small host-side messages never wait for a CUDA stream.

    Args:
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        timeout: how long a collective waits for the other ranks: they may have to wait while the first one evaluates
            all of a large data set. One that died ends the others through torchrun.

    Raises:
        ValueError: the device is none of the three, or "cuda" was asked for and there is no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' was asked for, but torch sees no CUDA device")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timeout)
    return chosen


def shutdown() -> None:
    """Leaves the group of all ranks, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def world() -> Group:
    """The group of all ranks; None when this process is alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.group.WORLD if dist.get_world_size() > 1 else None


def rank(group: Group = None) -> int:
    """This process's rank in `group`; without a group, among all ranks (0 when alone)."""
    if group is not None:
        return dist.get_rank(group)
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size(group: Group = None) -> int:
    """The number of ranks in `group`; without a group, of all ranks (1 when alone)."""
    if group is not None:
        return dist.get_world_size(group)
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def group_by_name(name: str) -> dist.ProcessGroup:
    """The process group with this `group_name`: what an op registered with torch can carry."""
    return torch._C._distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def gather_sizes(
    size: int,  # rows on this rank
    group: Group,
    device: torch.device,
) -> list[int]:
    """Every rank's number of rows, in rank order; where the group has a CPU backend, without waiting for a stream."""
    if group is None:
        return [size]
    place = torch.device("cpu") if "cpu:" in str(dist.get_backend_config(group)) else device
    sizes = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=place)
    dist.all_gather_into_tensor(sizes, torch.tensor([size], device=place), group=group)
    return [int(s) for s in sizes.tolist()]


@torch.no_grad()
def all_gather_rows(
    rows: Tensor,  # [n, ...], n may differ between ranks
    group: Group,
    sizes: list[int] | None = None,
) -> Tensor:
    """Concatenates the rows of all ranks in rank order. No gradient flows through it.

    Args:
        rows: this rank's rows, [n, ...]; the other dimensions and the dtype are equal on all ranks.
        group: process group, or None (returns `rows`).
        sizes: every rank's n where it is known already; it saves one exchange.

    Returns:
        [sum of n, ...].
    """
    if group is None:
        return rows.detach()
    sizes = gather_sizes(len(rows), group, rows.device) if sizes is None else sizes
    longest, width = max(sizes), rows.shape[1:].numel()
    # gloo in older torch knows no bfloat16: bytes are moved, whatever the dtype.
    sent = rows.detach().reshape(len(rows), width).contiguous().view(torch.uint8)
    if len(rows) < longest:
        sent = torch.cat((sent, sent.new_zeros(longest - len(rows), sent.shape[1])))
    received = sent.new_empty(len(sizes) * longest, sent.shape[1])
    dist.all_gather_into_tensor(received, sent, group=group)
    if min(sizes) < longest:
        received = torch.cat([part[:size] for part, size in zip(torch.split(received, longest), sizes, strict=True)])
    return received.view(rows.dtype).reshape(sum(sizes), *rows.shape[1:])


def gradient_factor(group: Group, grad_reduce: str) -> int:
    """The number a rank's part of a global gradient is multiplied by, for "mean" or "sum" to restore the whole.

    Raises:
        ValueError: `grad_reduce` is neither "mean" (DDP averages gradients) nor "sum".
    """
    if grad_reduce not in ("mean", "sum"):
        raise ValueError(f"grad_reduce must be 'mean' (as DDP does) or 'sum', got {grad_reduce!r}")
    return 1 if group is None or grad_reduce == "sum" else dist.get_world_size(group)


class _Total(torch.autograd.Function):
    """A sum over the ranks; the gradient stays on its rank, multiplied by `factor`."""

    @staticmethod
    def forward(values: Tensor, total: Tensor, factor: int) -> Tensor:
        return total.clone()

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.factor = inputs[2]  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.factor, None, None


def _summed(values: Tensor, group: dist.ProcessGroup, factor: int) -> Tensor:
    """The sum over the ranks. Inside the Function, torch.compile of torch 2.11 would give gradients of zero."""
    total = values.detach().clone()
    dist.all_reduce(total, group=group)
    summed: Tensor = _Total.apply(values, total, factor)
    return summed


def global_mean(
    per_row: Tensor,  # [n]
    weight: Tensor | None = None,  # [n]
    group: Group = None,
    grad_reduce: str = "mean",
) -> Tensor:
    """The (weighted) mean over the rows of all ranks, sum_i w_i x_i / sum_i w_i, exact for unequal n.

    Every rank returns the same value. Its gradient is that of the global mean with respect to this rank's rows,
    multiplied by the number of ranks under `grad_reduce="mean"`: DDP's averaging then gives the gradient of the mean.
    Without rows, or with weights that sum to 0, the value is 0 and so are the gradients.

    Args:
        per_row: values, [n].
        weight: weights >= 0, [n]; None means 1 each.
        group: process group, or None for this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards, "sum" when they are added.

    Returns:
        0-dim tensor.
    """
    factor = gradient_factor(group, grad_reduce)
    if weight is None and group is None:
        return per_row.sum() / max(len(per_row), 1)
    if weight is None:
        sums = torch.stack((per_row.sum(), per_row.new_tensor(float(len(per_row)))))
    else:
        weight = weight.to(per_row.dtype)  # first: the parts of its gradient are added in this dtype
        sums = torch.stack(((per_row * weight).sum(), weight.sum()))
    if group is not None:
        sums = _summed(sums, group, factor)
    return sums[0] / torch.where(sums[1] == 0, 1, sums[1])


def global_sum(
    per_row: Tensor,  # [n]
    group: Group = None,
    grad_reduce: str = "mean",
) -> Tensor:
    """The sum over the rows of all ranks, the same on every rank; gradients as in `global_mean`."""
    factor = gradient_factor(group, grad_reduce)
    total = per_row.sum()
    return total if group is None else _summed(total, group, factor)


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter], group: Group) -> None:
    """Replaces every gradient by its mean over the ranks: what DDP does, in one message per dtype.

    A parameter without a gradient is skipped; it must then have none on any rank.
    """
    if group is None:
        return
    buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            buckets.setdefault((parameter.grad.dtype, parameter.grad.device), []).append(parameter.grad)
    for grads in buckets.values():
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat, group=group)
        flat.div_(dist.get_world_size(group))
        for grad, mean in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))


def all_agree(flag: bool | Tensor, group: Group) -> bool:
    """True when the flag is true on every rank. A 0-dim tensor stays on its device until the one read at the end."""
    if group is None:
        return bool(flag)
    votes = flag.detach().to(torch.int32).clone() if isinstance(flag, Tensor) else _host_flag(flag, group)
    dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=group)
    return bool(votes.item())


def _host_flag(flag: bool, group: dist.ProcessGroup) -> Tensor:
    on_host = "cpu:" in str(dist.get_backend_config(group))
    return torch.tensor(int(flag), dtype=torch.int32, device="cpu" if on_host else "cuda")


def broadcast_object(value: T, group: Group, source: int = 0) -> T:
    """The value of rank `source` of the group, on every rank. It travels as a pickle between our own processes."""
    if group is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=dist.get_global_rank(group, source), group=group)
    return box[0]


def barrier(group: Group) -> None:
    """Waits until every rank of the group is here."""
    if group is not None:
        dist.barrier(group)
