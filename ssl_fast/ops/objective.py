"""The two kinds of fused losses, in all the ways torch calls them: eager, recorded, traced, under torch.func.

`Objective`: the gradients are made together with the loss; the backward pass only multiplies them.
`Rows`: a loss per row that keeps little; the backward pass computes the logits again.

An op says what differs: its kernels' computation, the equation in plain torch (second derivatives, torch.func), and the
names of its arguments, of which the tensors come first and the options after them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_fast.ops import contract

Found = Sequence[Tensor | None]


class _Function(torch.autograd.Function):
    """The autograd of every op.

    All tensors are saved: autograd then notices one that was written to before the backward pass. `forward` takes ctx:
    for the form with `setup_context`, torch binds the arguments by name, 20 us a call.
    """

    @staticmethod
    def forward(ctx: Any, op: "_Op", options: tuple[Any, ...], *tensors: Tensor | None) -> Tensor:
        found = op.compute(*tensors, *options, *op.recorded)
        ctx.save_for_backward(*tensors, *found[1:])
        ctx.set_materialize_grads(False)
        ctx.op, ctx.options = op, options
        return found[0]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        return None, None, *ctx.op.backward_of_eager(ctx, upstream[0])


class _Op:
    """What both kinds share.

    Attributes:
        compute: the loss and what is kept for the backward pass, from tensors and options.
        equation: the loss in plain torch, from the same arguments.
        num_tensors: how many of the arguments are tensors.
        recorded: what `compute` is given after the options when autograd records it; `bare` when it does not.
    """

    recorded: tuple[bool, ...] = ()
    bare: tuple[bool, ...] = ()

    def __init__(
        self,
        name: str,
        tensors: str,
        options: str,
        compute: Callable[..., Any],
        equation: Callable[..., Tensor],
        title: str = "",
    ) -> None:
        """
        Args:
            name: of the op registered with torch.
            tensors: its first arguments in the language of torch.library, "Tensor x, Tensor? weight".
            options: its other arguments; one called `group` is a process group's name, "" for this process alone.
            compute: see above.
            equation: see above.
            title: the subject of messages; empty: the name.
        """
        self.name, self.compute, self.equation, self.title = name, compute, equation, title or name
        self.num_tensors, self.num_options = tensors.count(",") + 1, options.count(",") + 1
        names = [option.split()[-1] for option in options.split(",")]
        self.group = names.index("group") if "group" in names else None

    def __call__(self, tensors: tuple[Tensor | None, ...], options: tuple[Any, ...]) -> Tensor:
        """The loss by the cheapest right way."""
        result: Tensor
        if contract.plainly():
            if contract.wants_gradient(*tensors):
                result = _Function.apply(self, options, *tensors)
            else:
                result = self.compute(*tensors, *options, *self.bare)[0]
        elif contract.under_functorch():
            self._alone(options, "does not work inside torch.func transforms")
            first = next(t for t in tensors if t is not None)
            with torch.autocast(first.device.type, enabled=False):
                result = self.equation(*tensors, *options)
        else:
            op = getattr(torch.ops.ssl_fast, self.name)
            given = self.recorded if contract.wants_gradient(*tensors) else self.bare
            result = op(*tensors, *options, *given)[0]
        return result

    def backward(self, ctx: Any, upstream: Tensor | None, needed: Sequence[bool]) -> Found:
        """One gradient, or None, for each of the tensors."""
        saved, found = ctx.saved_tensors, []
        tensors, kept = saved[: self.num_tensors], saved[self.num_tensors :]
        if upstream is not None and torch.is_grad_enabled():
            self._alone(ctx.options, "cannot be differentiated twice (create_graph=True)")
            found = contract.differentiable_gradients(lambda *t: self.equation(*t, *ctx.options), tensors, upstream)
        elif upstream is not None:
            found = self.gradients(tensors, ctx.options, kept, upstream, needed)
        return *found, *(None,) * (self.num_tensors - len(found))

    def backward_of_eager(self, ctx: Any, upstream: Tensor | None) -> Found:
        """The same of a call of `_Function`, for which a gradient that is not there is None."""
        return self.backward(ctx, upstream, ctx.needs_input_grad[2:])

    def gradients(
        self, tensors: Found, options: tuple[Any, ...], kept: Found, upstream: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients of the first tensors."""
        raise NotImplementedError

    def _alone(self, options: tuple[Any, ...], what: str) -> None:
        if self.group is not None and options[self.group]:
            raise RuntimeError(f"{self.title} with group= {what}")

    def register(self, schema: str, fake: Callable[..., Any]) -> None:
        """Registers the op with its autograd for torch.compile."""

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            options = inputs[self.num_tensors : self.num_tensors + self.num_options]
            ctx.save_for_backward(*inputs[: self.num_tensors], *output[1:])
            ctx.set_materialize_grads(False)
            ctx.op, ctx.options = self, options
            ctx.mark_non_differentiable(*output[1:])

        def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
            found = self.backward(ctx, upstream[0], ctx.needs_input_grad[: self.num_tensors])
            return *found, *(None,) * (len(ctx.needs_input_grad) - len(found))

        contract.register(schema, self.compute, fake, (setup_context, backward))


class Objective(_Op):
    """A loss that comes with its gradients.

    `compute(*tensors, *options, with_grad)` returns the loss and one gradient, or None, for each of the first
    `num_gradients` tensors.
    """

    recorded, bare = (True,), (False,)

    def __init__(
        self,
        name: str,
        tensors: str,
        options: str,
        compute: Callable[..., Any],
        equation: Callable[..., Tensor],
        *,
        num_gradients: int,
        per_row: bool = False,
        registered: bool = True,
        fake: Callable[..., Any] | None = None,
        title: str = "",
    ) -> None:
        """
        Args:
            name, tensors, options, compute, equation, title: as for every op.
            num_gradients: how many of the tensors, from the first on, may have a gradient.
            per_row: the loss is one number for each row, [N], and gradient row i that of loss i alone.
            registered: False for what is called in eager mode alone, under a condition that the caller checks.
            fake: the results without data; None: every tensor's gradient comes where the tensor is given.
        """
        super().__init__(name, tensors, options, compute, equation, title)
        self.num_gradients, self.per_row = num_gradients, per_row
        self.rest = (None,) * (self.num_tensors - num_gradients)
        results = ", ".join(["Tensor"] * (1 + num_gradients))
        if registered:
            self.register(f"{name}({tensors}, {options}, bool with_grad) -> ({results})", fake or self._fake)

    def _fake(self, *inputs: Any) -> tuple[Tensor, ...]:
        first, rows = inputs[0], inputs[0].shape[:1] if self.per_row else ()
        shapes = (None if t is None or not inputs[-1] else t.shape or rows for t in inputs[: self.num_gradients])
        return wide(first, *rows), *(first.new_empty(0) if shape is None else wide(first, *shape) for shape in shapes)

    def backward_of_eager(self, ctx: Any, upstream: Tensor | None) -> Found:
        """The common case in as few steps as there are: the caches hold none of this after a forward pass."""
        if not self.per_row and upstream is not None and _is_one(upstream):
            # Those that nobody asked for among them: autograd drops them.
            return *ctx.saved_tensors[self.num_tensors :], *self.rest
        return super().backward_of_eager(ctx, upstream)

    def gradients(
        self, tensors: Found, options: tuple[Any, ...], kept: Found, upstream: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Those of the forward pass times the upstream gradient."""
        wanted = [gradient if need else None for gradient, need in zip(kept, needed, strict=False)]
        if self.per_row:
            return [None if gradient is None else _by_row(gradient, upstream) for gradient in wanted]
        if _is_one(upstream):
            return wanted
        # Out of place, for the graph may be walked again; autograd casts to the dtypes of the inputs.
        return [None if gradient is None else gradient * upstream for gradient in wanted]


def _is_one(
    upstream: Tensor,  # []
) -> bool:
    """Whether the gradients may go out as they are: times one, and nobody walks this graph again."""
    # The number must be there to be read, without waiting for a device. `is_grads_batched` has a vmap of its own.
    return (
        not torch.is_grad_enabled()  # create_graph
        and not torch._C._autograd._get_current_graph_task_keep_graph()
        and upstream.is_cpu
        and contract.plainly()
        and not torch._C._functorch.is_legacy_batchedtensor(upstream)
        and upstream.item() == 1
    )


def _by_row(
    gradient: Tensor,  # [N, D], or [N] of a number that all rows share
    upstream: Tensor,  # [N]
) -> Tensor:
    return gradient * upstream[:, None] if gradient.dim() == 2 else (gradient * upstream).sum()


class Rows(_Op):
    """A loss per row, whose gradients are computed in the backward pass.

    `compute(*tensors, *options)` returns the losses and `num_kept` tensors (or None);
    `derive(upstream, *kept, *tensors, *options)` the gradients of the first `num_gradients` tensors, of one as it is.
    """

    def __init__(
        self,
        name: str,
        tensors: str,
        options: str,
        compute: Callable[..., Any],
        derive: Callable[..., Any],
        equation: Callable[..., Tensor],
        fake: Callable[..., Any],
        *,
        num_gradients: int,
        num_kept: int = 1,
        title: str = "",
    ) -> None:
        """
        Args:
            name, tensors, options, compute, equation, title: as for every op.
            derive: see above.
            fake: what `compute` returns, without data.
            num_gradients: how many of the tensors, from the first on, may have a gradient.
            num_kept: how many tensors `compute` keeps.
        """
        super().__init__(name, tensors, options, compute, equation, title)
        self.derive, self.num_kept, self.num_gradients = derive, num_kept, num_gradients
        self.register(f"{name}({tensors}, {options}) -> ({', '.join(['Tensor'] * (1 + num_kept))})", fake)
        kept = "".join(f"Tensor kept{index}, " for index in range(num_kept))
        results = ", ".join(["Tensor"] * num_gradients)
        schema = f"{name}_backward(Tensor upstream, {kept}{tensors}, {options}) -> ({results})"
        contract.register(schema, derive, self._fake_gradients)

    def _fake_gradients(self, *inputs: Any) -> Any:
        tensors = inputs[1 + self.num_kept :][: self.num_gradients]
        found = tuple(inputs[0].new_empty(0) if t is None else wide(tensors[0], *t.shape) for t in tensors)
        return found if len(found) > 1 else found[0]

    def gradients(
        self, tensors: Found, options: tuple[Any, ...], kept: Found, upstream: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Computed again, from the same tensors."""
        traced = contract.under_tracing()
        run = getattr(torch.ops.ssl_fast, f"{self.name}_backward") if traced else self.derive
        found = run(upstream, *kept, *tensors, *options)
        found = [found] if isinstance(found, Tensor) else found
        return [gradient if need else None for gradient, need in zip(found, needed, strict=False)]


def wide(like: Tensor, *shape: int) -> Tensor:
    """A tensor without data beside `like`, in at least fp32."""
    return like.new_empty(shape, dtype=torch.promote_types(like.dtype, torch.float32))
