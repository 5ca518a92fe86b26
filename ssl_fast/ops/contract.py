"""What every op shares: checks of arguments, the route (eager, traced, functorch), second derivatives, registration."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssl_fast.distributed import Group, global_mean, global_sum

REDUCTIONS = ("mean", "sum", "none")
_LIBRARY = torch.library.Library("ssl_fast", "FRAGMENT")  # type: ignore[no-untyped-call]


def check_rows(
    name: str,
    rows: Tensor,  # [N, D]
    like: Tensor | None = None,  # [N, D]
    like_name: str = "",
) -> None:
    """Raises ValueError unless `rows` is a floating-point matrix, of the shape and device of `like` if given."""
    if rows.dim() != 2 or not rows.is_floating_point():
        raise ValueError(f"{name} must be floating point of shape [N, D], got {rows.dtype} of shape {list(rows.shape)}")
    if like is not None and (rows.shape != like.shape or rows.device != like.device):
        raise ValueError(
            f"{name} must have the shape and device of {like_name}, {list(like.shape)} on {like.device}, "
            f"got {list(rows.shape)} on {rows.device}"
        )


def check_pair(
    names: tuple[str, str],
    first: Tensor,  # [N, D]
    second: Tensor,  # [N, D]
) -> None:
    """Raises ValueError unless both are floating-point matrices of one shape and device."""
    # In one step; what is wrong is found out where something is.
    if (
        first.dim() != 2
        or first.shape != second.shape
        or first.device != second.device
        or not first.is_floating_point()
        or not second.is_floating_point()
    ):
        check_rows(names[0], first)
        check_rows(names[1], second, first, names[0])


def of_one_dtype(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes."""
    if first.dtype == second.dtype:
        return first, second
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(dtype)


def check_weight(
    weight: Tensor | None,  # [N]
    samples: Tensor,
    dim: int = 0,  # of samples that counts them
) -> None:
    """Raises ValueError unless `weight` is None or one floating-point number for each of the N samples."""
    if weight is not None and (weight.shape != (samples.shape[dim],) or not weight.is_floating_point()):
        raise ValueError(
            f"weight must be floating point of shape [{samples.shape[dim]}], one per sample, "
            f"got {weight.dtype} of shape {list(weight.shape)}"
        )


def check_reduction(reduction: str) -> None:
    """Raises ValueError unless `reduction` is "mean", "sum" or "none"."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def split_temperature(temperature: float | Tensor) -> tuple[Tensor | None, float]:
    """A temperature as (tensor, 0.0) or (None, 1 / temperature). A tensor's value is not read: that would wait for it.

    Raises:
        ValueError: a number that is not positive, or a tensor that is not a floating-point scalar.
    """
    if isinstance(temperature, Tensor):
        if temperature.dim() != 0 or not temperature.is_floating_point():
            raise ValueError(
                "temperature must be a positive number or a floating-point tensor of shape [], "
                f"got {temperature.dtype} of shape {list(temperature.shape)}"
            )
        return temperature, 0.0
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return None, 1.0 / temperature


def inverse_of(
    temperature: Tensor | None,  # []
    inv_temperature: float,
    rows: Tensor,  # [N, D]
) -> Tensor | float:
    """What the kernels take: 1 / temperature as a number, or as a tensor beside `rows` in at least fp32."""
    if temperature is None:
        return inv_temperature
    return temperature.detach().to(rows.device, torch.promote_types(rows.dtype, torch.float32)).reciprocal()


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd is to record anything for these inputs."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # a generator in any() takes longer than what it does
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def under_functorch() -> bool:
    """Inside torch.func.grad, vmap, jvp ... or forward-mode AD: they see through plain torch alone."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def under_tracing() -> bool:
    """Inside torch.compile, torch.export or a dispatch mode: call the registered op, not the Python function."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def plainly() -> bool:
    """Whether the call is an ordinary one, neither traced nor transformed."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
    )


def register(
    schema: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    autograd: tuple[Callable[..., None], Callable[..., Any]] | None = None,
) -> None:
    """Registers `ssl_fast::<schema>` for torch.compile. In eager mode nobody calls it: its boundary costs microseconds.

    Args:
        schema: name, arguments and results in the language of torch.library.
        function: the op on plain tensors; a result that is None becomes an empty tensor.
        fake: the same results without data.
        autograd: `setup_context` and `backward`, as for `torch.library.register_autograd`.
    """
    name = f"ssl_fast::{schema.split('(')[0]}"

    def run(*args: Any) -> Any:
        results = function(*args)
        if isinstance(results, Tensor):
            return results
        return tuple(args[0].new_empty(0) if result is None else result for result in results)

    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    if autograd is not None:
        setup_context, backward = autograd
        torch.library.register_autograd(name, backward, setup_context=setup_context, lib=_LIBRARY)


def differentiable_gradients(
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    upstream: Tensor,
) -> list[Tensor | None]:
    """Gradients of `reference(*inputs)` that can be differentiated again: the backward pass under `create_graph`."""
    # Aliases: when one tensor is passed twice, each place gets its own gradient.
    aliases = [t.view_as(t) if t is not None and t.requires_grad else t for t in inputs]
    wanted = [t for t in aliases if t is not None and t.requires_grad]
    with torch.autocast(upstream.device.type, enabled=False):
        output = reference(*aliases)
        found = iter(torch.autograd.grad(output, wanted, upstream, create_graph=True, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in aliases]


def reduced(
    rows: Tensor,  # [N]
    weight: Tensor | None,  # [N]
    group: Group,
    grad_reduce: str,
    reduction: str,
) -> Tensor:
    """The losses of the rows as "mean" or "sum" over all ranks' rows, or "none"."""
    if reduction == "mean":
        return global_mean(rows, weight, group, grad_reduce)
    weighted = rows if weight is None else rows * weight
    return weighted if reduction == "none" else global_sum(weighted, group, grad_reduce)


def widened(rows: Tensor) -> Tensor:
    """At least fp32: the plain reference then accumulates as the kernels do."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
