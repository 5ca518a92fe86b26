r"""InfoNCE against a queue of negatives (MoCo): loss and gradients in one pass over the queue, no [N, K + 1] logits.

    loss_i = -log( exp(s_i) / (exp(s_i) + sum_j exp(s_ij)) ),   s_i = <q_i, k_i> / temperature
                                                                s_ij = <q_i, u_j> / temperature
with q, k at unit length and u the rows of the queue, which are unit vectors already. Without a queue (MoCo v3), u are
the keys of the other samples, of all ranks: CLIP's loss in one direction.

Letters: N samples, D embedding, K rows of the queue.

Reference: He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv:1911.05722, Eq. 1;
Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers", arXiv:2104.02057, Alg. 1.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.distributed import Group, all_gather_rows, global_mean, global_sum, gradient_factor
from ssl_fast.ops import contract
from ssl_fast.ops.clip_loss import clip_loss_reference, contrast
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.two_towers import check_towers


def info_nce_reference(
    q: Tensor,  # [N, D]
    k: Tensor,  # [N, D]
    queue: Tensor | None = None,  # [K, D]
    *,
    temperature: float | Tensor = 0.07,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    reduction: str = "mean",
) -> Tensor:
    """The equation in plain torch, in the dtype of q: oracle and baseline. Differentiable any number of times."""
    if queue is None:
        loss = clip_loss_reference(q, k, 1 / temperature, normalize, weight, reduction, sides=1)
        return loss.squeeze(0)
    if normalize:
        q, k = F.normalize(q, dim=1, eps=1e-12), F.normalize(k, dim=1, eps=1e-12)
    positive = (q * k).sum(1, keepdim=True)  # [N, 1]
    logits = torch.cat((positive, q @ queue.detach().to(q.dtype).T), 1) / temperature  # [N, 1 + K]
    loss = logits.logsumexp(1) - logits[:, 0]
    return _reduced(loss, weight, None, "mean", reduction)


def _reduced(
    loss: Tensor,  # [N]
    weight: Tensor | None,  # [N]
    group: Group,
    grad_reduce: str,
    reduction: str,
) -> Tensor:
    if reduction == "mean":
        return global_mean(loss, weight, group, grad_reduce)
    weighted = loss if weight is None else loss * weight
    return weighted if reduction == "none" else global_sum(weighted, group, grad_reduce)


def _info_nce(
    q: Tensor,  # [N, D]
    k: Tensor,  # [N, D]
    queue: Tensor,  # [K, D]
    temperature: Tensor | None,  # []
    inv_temperature: float,
    normalize: bool,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Per row: loss [N], and when wanted dq [N, D], dk [N, D], dtemperature [N]."""
    kernel = choose("info_nce", impl, q, k, queue)
    inverse = contract.inverse_of(temperature, inv_temperature, q)
    q, k = q.detach().contiguous(), k.detach().contiguous()
    loss, dq, dk, dinv = kernel.forward(q, k, queue, inverse, normalize, with_grad)
    return loss, dq, dk, None if temperature is None or dinv is None else dinv * (inverse * inverse * -1)


class _InfoNCE(torch.autograd.Function):
    """The loss of each row; its derivatives are made in the forward pass, the backward pass only multiplies them.

    `forward` takes ctx: for the form with `setup_context`, torch binds the arguments by name, 20 us a call.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _info_nce(*inputs)
        _InfoNCE.save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        """Keeps what `backward` needs; also the set-up of the registered op."""
        # The queue is saved so that autograd notices an enqueue before the backward pass, whatever the implementation.
        ctx.save_for_backward(*inputs[:4], *output[1:])
        ctx.set_materialize_grads(False)
        ctx.inv_temperature, ctx.normalize = inputs[4], inputs[5]

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        q, k, queue, temperature, dq, dk, dtemperature = ctx.saved_tensors
        grad, need = upstream[0], ctx.needs_input_grad
        if grad is None:
            return (None,) * 8
        if torch.is_grad_enabled():
            again = _again(q, k, queue, temperature, ctx.inv_temperature, ctx.normalize, grad)
            return again[0], again[1], None, again[2], *(None,) * 4
        # Out of place, for the graph may be walked again; autograd casts to the dtypes of the inputs.
        column = grad[:, None]
        dq, dk = dq * column if need[0] else None, dk * column if need[1] else None
        return dq, dk, None, (dtemperature * grad).sum() if need[3] else None, *(None,) * 4


def _again(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature: Tensor | None,
    inv_temperature: float,
    normalize: bool,
    upstream: Tensor,
) -> list[Tensor | None]:
    """The gradients once more through the reference, so that they have gradients."""

    def reference(q: Tensor, k: Tensor, temperature: Tensor | None) -> Tensor:
        return info_nce_reference(
            contract.widened(q),
            contract.widened(k),
            queue,
            temperature=1 / inv_temperature if temperature is None else temperature,
            normalize=normalize,
            reduction="none",
        )

    return contract.differentiable_gradients(reference, (q, k, temperature), upstream)


def _fake(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature: Tensor | None,
    inv_temperature: float,
    normalize: bool,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    loss = q.new_empty(len(q), dtype=dtype)
    if not with_grad:
        return loss, q.new_empty(0), q.new_empty(0), q.new_empty(0)
    rows = (q.new_empty(q.shape, dtype=dtype), q.new_empty(q.shape, dtype=dtype))
    return loss, *rows, q.new_empty(0) if temperature is None else torch.empty_like(loss)


contract.register(
    "info_nce(Tensor q, Tensor k, Tensor queue, Tensor? temperature, float inv_temperature, bool normalize, str impl,"
    " bool with_grad) -> (Tensor, Tensor, Tensor, Tensor)",
    _info_nce,
    _fake,
    _InfoNCE,
)


def info_nce(
    q: Tensor,  # [N, D]
    k: Tensor,  # [N, D]
    queue: Tensor | None = None,  # [K, D]
    *,
    temperature: float | Tensor = 0.07,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """MoCo's loss: each query against its key and all rows of the queue, in memory O(N D).

    The queue is read, never written, and gets no gradient; call `MoCoQueue.enqueue_` after the backward pass. Rows are
    compared with fp32 accumulation (fp64 for fp64), under autocast too; the loss is at least fp32 and gradients come in
    the dtype of their input. N = 0 gives 0 and empty gradients.

    Args:
        q: queries, [N, D].
        k: keys, [N, D]; row i is the positive of query i. They get a gradient when they require one.
        queue: negatives, [K, D], unit rows, bf16 or the dtype of q; any K. None: the negatives of a query are the keys
            of all other samples of all ranks. MoCo v3 calls it twice, (q1, k2) and (q2, k1), with keys that need no
            gradient; its factor 2 temperature is the method's.
        temperature: positive number, or a tensor of shape [] that may need a gradient.
        normalize: scale q and k to unit length first (norms are clamped at 1e-12). False: rows are taken as they are.
        weight: weights >= 0 of the samples, [N]; "mean" is then the weighted mean. They may need a gradient.
        group: process group over which "mean" and "sum" run; local batches may differ in size. A queue is each rank's
            own copy of the same rows. None: this process alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the
            number of ranks. "sum" when they are added.
        reduction: "mean" or "sum" over the samples (of all ranks), or "none": [N], times the weights. Under "none"
            `grad_reduce` plays no part: `distributed.global_mean` applies it.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here, or without a queue a second derivative with `group`.

    Example:
        >>> q, queue = torch.eye(2, 3), torch.eye(3)[2:]
        >>> round(info_nce(q, q, queue, temperature=1.0).item(), 4)  # log(e + 1) - 1
        0.3133
        >>> round(info_nce(q, q, temperature=1.0).item(), 4)  # the same, against the other sample's key
        0.3133

    Reference: He et al. 2020, arXiv:1911.05722, Eq. 1; Chen et al. 2021, arXiv:2104.02057, Alg. 1.
    """
    if queue is None:
        return _among_keys(q, k, temperature, normalize, weight, group, grad_reduce, reduction, impl)
    contract.check_rows("q", q)
    contract.check_rows("k", k, q, "q")
    contract.check_rows("queue", queue)
    if queue.shape[1] != q.shape[1] or queue.device != q.device:
        raise ValueError(
            f"queue must have rows of {q.shape[1]} numbers on {q.device} as q has, "
            f"got {queue.shape[1]} on {queue.device}"
        )
    contract.check_weight(weight, len(q))
    contract.check_reduction(reduction)
    check_impl("info_nce", impl)
    gradient_factor(group, grad_reduce)
    tensor, inverse = contract.split_temperature(temperature)
    queue = queue.detach()
    if contract.under_functorch():
        wide_q, wide_k = contract.widened(q), contract.widened(k)
        loss = info_nce_reference(wide_q, wide_k, queue, temperature=temperature, normalize=normalize, reduction="none")
    else:
        k = k if k.dtype == q.dtype else k.to(q.dtype)
        recorded = contract.wants_gradient(q, k, tensor)
        inputs = (q, k, queue, tensor, inverse, normalize, impl, recorded)
        loss = contract.call(_InfoNCE, _info_nce, "info_nce", recorded, inputs)
    return _reduced(loss, weight, group, grad_reduce, reduction)


def _among_keys(
    q: Tensor,  # [N, D]
    k: Tensor,  # [N, D]
    temperature: float | Tensor,
    *options: Any,
) -> Tensor:
    """Each query against the keys of all samples: CLIP's loss from the queries to the keys."""
    q, k = check_towers(q, k, "q", "k")
    tensor, inverse = contract.split_temperature(temperature)
    scale = None if tensor is None else contract.widened(tensor).reciprocal()
    return contrast(q, k, (scale, inverse), 1, *options).squeeze(0)


class InfoNCELoss(nn.Module):
    """`info_nce` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        normalize: bool = True,
        group: Group = None,
        grad_reduce: str = "mean",
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.temperature, self.normalize, self.impl = temperature, normalize, impl
        self.group, self.grad_reduce, self.reduction = group, grad_reduce, reduction

    def forward(
        self,
        q: Tensor,  # [N, D]
        k: Tensor,  # [N, D]
        queue: Tensor | None = None,  # [K, D]
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`info_nce(q, k, queue, weight=weight)` with the module's settings."""
        return info_nce(
            q,
            k,
            queue,
            temperature=self.temperature,
            normalize=self.normalize,
            weight=weight,
            group=self.group,
            grad_reduce=self.grad_reduce,
            reduction=self.reduction,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """The settings that `print(module)` shows."""
        shown = ("temperature", "normalize", "reduction", "impl")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)


class MoCoQueue(nn.Module):
    """A ring of the last K keys. It starts as random unit vectors; both buffers are saved in the state_dict.

    Attributes:
        rows: [K, D], unit vectors.
        pointer: [] int64 on the device: where the next key goes. It is never read on the host.

    Reference: He et al. 2020, arXiv:1911.05722, Alg. 1.
    """

    rows: Tensor
    pointer: Tensor

    def __init__(
        self,
        size: int = 65536,
        dim: int = 128,
        dtype: torch.dtype = torch.bfloat16,
        generator: torch.Generator | None = None,
    ) -> None:
        """
        Args:
            size: number of keys K.
            dim: embedding dimension D.
            dtype: floating-point dtype of the rows.
            generator: CPU generator of the first rows; None: torch's own. Give all ranks the same.

        Raises:
            ValueError: a size that is not positive.
        """
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"size and dim must be positive, got size={size} and dim={dim}")
        first = F.normalize(torch.randn(size, dim, generator=generator), dim=1)
        self.register_buffer("rows", first.to(dtype))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue_(
        self,
        keys: Tensor,  # [N, D]
        group: Group = None,
    ) -> None:
        """Writes the keys at unit length over the oldest rows; of more than K keys the last K stay.

        Call it after the backward pass: autograd refuses a loss whose queue has changed since.

        Args:
            keys: [N, D].
            group: process group; every rank writes the keys of all ranks, in rank order. None: this process alone.

        Raises:
            ValueError: the keys' dimension is not the queue's.
        """
        if keys.dim() != 2 or keys.shape[1] != self.rows.shape[1]:
            raise ValueError(f"keys must have shape [N, {self.rows.shape[1]}], got {list(keys.shape)}")
        unit = F.normalize(contract.widened(keys), dim=1, eps=1e-12).to(self.rows.dtype)
        unit = all_gather_rows(unit, group)
        size, count = len(self.rows), len(unit)
        kept = min(size, count)
        where = torch.arange(count - kept, count, device=self.rows.device).add_(self.pointer).remainder_(size)
        self.rows.index_copy_(0, where, unit[count - kept :])
        self.pointer.add_(count).remainder_(size)

    def forward(self) -> Tensor:
        """The rows [K, D]."""
        return self.rows

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"size={self.rows.shape[0]}, dim={self.rows.shape[1]}, dtype={self.rows.dtype}"
