r"""Sinkhorn-Knopp: soft assignments of samples to prototypes that share the prototypes out evenly (SwAV, DINOv2).

    Q_nk = u_n E_nk v_k,  E_nk = exp(x_nk / temperature),  with u, v such that
    sum_k Q_nk = 1 for every sample, sum_n Q_nk = N / K for every prototype (the last only as the iterations go on).

An iteration scales the prototypes, then the samples; the constants 1/K and 1/N of the papers cancel. The vectors alone
are kept: u_n E_nk v_k, k = 1 .. K, is the softmax of x_n / temperature + log v, so no logit can overflow it, and its
columns, summed over n, give the next v. They lie between 1/K and N: u never needs more range either.

Letters: N samples, K prototypes.

Reference: Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
arXiv:2006.09882, Eq. 3 to 5 and Appendix A; Cuturi 2013, arXiv:1306.0895.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_fast.distributed import Group
from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import check_impl, choose


def sinkhorn_reference(
    logits: Tensor,  # [N, K]
    *,
    temperature: float = 0.05,
    iterations: int = 3,
) -> Tensor:
    """The papers' algorithm as it stands, in the dtype of the logits, but for a maximum taken off before exp."""
    Q = ((logits - logits.max()) / temperature).exp().T  # [K, N]
    Q = Q / Q.sum()
    K, N = Q.shape
    for _ in range(iterations):
        Q = Q / Q.sum(1, keepdim=True) / K
        Q = Q / Q.sum(0, keepdim=True) / N
    return (Q * N).T


@torch.no_grad()
def sinkhorn(
    logits: Tensor,  # [N, K]
    *,
    temperature: float = 0.05,
    iterations: int = 3,
    group: Group = None,
    impl: str = "auto",
) -> Tensor:
    """The assignments Q of this rank's samples, balanced over the samples of all ranks. No gradient flows through it.

    Beside the result no matrix of its size is made, and logits of any size or spread are safe.

    Args:
        logits: similarities of samples and prototypes, [N, K].
        temperature: positive number (epsilon in SwAV).
        iterations: how often prototypes and samples are scaled, at least 1.
        group: process group whose ranks hold parts of one batch; the parts may differ in size and be empty. Each
            iteration adds up one vector [K] over the ranks (the first also takes its maximum). None: this process.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        [N, K], rows that sum to 1; float64 for float64, else float32.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value.
        RuntimeError: `impl` is not available here.

    Example:
        >>> q = sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.9]]), temperature=0.5, iterations=50)
        >>> q.sum(0)  # the second sample gives way
        tensor([1., 1.])

    Reference: Caron et al. 2020, arXiv:2006.09882, Eq. 3 to 5.
    """
    _check(logits, temperature, iterations)
    check_impl("sinkhorn", impl)
    impl = "reference" if contract.under_functorch() else impl
    log_v = balance_logits(logits, temperature, iterations, group, impl)
    run = torch.ops.ssl_fast.sinkhorn_assignments if contract.under_tracing() else _assignments
    q: Tensor = run(logits, log_v, 1 / temperature, impl)
    return q


def balance_logits(
    logits: Tensor,  # [N, K]
    temperature: float,
    iterations: int,
    group: Group,
    impl: str = "auto",
) -> Tensor:
    """log v [K]: softmax over k of x / temperature + log v gives Q. The arguments are those of `sinkhorn`."""
    if group is None and contract.plainly():
        kernel = choose("sinkhorn", impl, logits)
        if hasattr(kernel, "balance"):
            found: Tensor = kernel.balance(logits, 1 / temperature, iterations)
            return found
    impl = "reference" if contract.under_functorch() else impl
    run = torch.ops.ssl_fast.sinkhorn_column_logs if contract.under_tracing() else _column_logs
    return balance(lambda log_v: run(logits, log_v, 1 / temperature, impl), iterations, group)


def balance(
    column_logs: Callable[[Tensor | None], Tensor],
    iterations: int,
    group: Group,
) -> Tensor:
    """log v [K] for logits that are never there as a whole: softmax over k of x / temperature + log v gives Q.

    Args:
        column_logs: log sum_n u_n E_nk over this rank's samples, [K], with u_n = 1 / sum_k E_nk v_k of the log v that
            it is given, or u = 1 for None.
        iterations: as in `sinkhorn`.
        group: as in `sinkhorn`.
    """
    log_v = _all_ranks(column_logs(None), group).neg_()
    for _ in range(iterations - 1):
        logs = column_logs(log_v)
        if group is not None:
            # Relative to the last v the sums lie between 1 / K and N: one exchange, no maximum.
            sums = (logs + log_v).exp_()
            dist.all_reduce(sums, group=group)
            logs = sums.log_() - log_v
        log_v = -logs
    return log_v


def _check(logits: Tensor, temperature: float, iterations: int) -> None:
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point of shape [N, K], got {logits.dtype} of shape {list(logits.shape)}"
        )
    check_settings(temperature, iterations)


def check_settings(temperature: float, iterations: int) -> None:
    """Raises ValueError unless the temperature is positive and there is an iteration to make."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")


def _column_logs(
    logits: Tensor,  # [N, K]
    log_v: Tensor | None,  # [K]
    inv_temperature: float,
    impl: str,
) -> Tensor:
    """log sum_n u_n exp(x_nk / temperature), [K], with the u of log_v (u = 1 without)."""
    found: Tensor = choose("sinkhorn", impl, logits).column_logs(logits, inv_temperature, log_v)
    return found


def _assignments(
    logits: Tensor,  # [N, K]
    log_v: Tensor,  # [K]
    inv_temperature: float,
    impl: str,
) -> Tensor:
    """The softmax over k of x / temperature + log v, [N, K]."""
    found: Tensor = choose("sinkhorn", impl, logits).assignments(logits, inv_temperature, log_v)
    return found


def _fake_column_logs(logits: Tensor, log_v: Tensor | None, inv_temperature: float, impl: str) -> Tensor:
    return contract.widened(logits.new_empty(logits.shape[1]))


def _fake_assignments(logits: Tensor, log_v: Tensor, inv_temperature: float, impl: str) -> Tensor:
    return logits.new_empty(logits.shape, dtype=log_v.dtype)


_ARGUMENTS = "float inv_temperature, str impl"
contract.register(
    f"sinkhorn_column_logs(Tensor logits, Tensor? log_v, {_ARGUMENTS}) -> Tensor", _column_logs, _fake_column_logs
)
contract.register(
    f"sinkhorn_assignments(Tensor logits, Tensor log_v, {_ARGUMENTS}) -> Tensor", _assignments, _fake_assignments
)


def _all_ranks(
    logs: Tensor,  # [K]
    group: Group,
) -> Tensor:
    """log of the sum over the ranks of exp(logs); 0 where no rank has a sample."""
    if group is not None:
        highest = logs.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        sums = torch.where(highest == -torch.inf, 0, logs - highest).exp_()
        dist.all_reduce(sums, group=group)
        logs = sums.log_().add_(highest)
    return torch.where(logs == -torch.inf, 0, logs)
