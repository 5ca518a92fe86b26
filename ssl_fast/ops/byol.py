r"""The regression losses without negatives: BYOL's squared distance and SimSiam's negative cosine.

    BYOL     loss_i = || p_i / |p_i| - z_i / |z_i| ||^2 = 2 - 2 cos(p_i, z_i)
    SimSiam  loss_i = -cos(p_i, z_i)
No gradient flows into z. The squared distance of the unit rows keeps its digits as they align; 2 - 2 cos does not.

Letters: N samples, D embedding, p predictions, z targets.

Reference: Grill et al. 2020, "Bootstrap your own latent", arXiv:2006.07733, Eq. 2; Chen and He 2021, "Exploring Simple
Siamese Representation Learning", arXiv:2011.10566, Eq. 1 and 3.
"""

from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ssl_fast.distributed import Group, gradient_factor
from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.objective import Objective


def byol_reference(
    p: Tensor,  # [N, D]
    z: Tensor,  # [N, D]
    *,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    reduction: str = "mean",
) -> Tensor:
    """The equation in plain torch, in the dtype of p: oracle and baseline. Differentiable any number of times."""
    z = z.detach().to(p.dtype)
    if normalize:
        p, z = F.normalize(p, dim=1, eps=1e-12), F.normalize(z, dim=1, eps=1e-12)
    return contract.reduced((p - z).square().sum(1), weight, None, "mean", reduction)


def _byol(
    p: Tensor,  # [N, D]
    z: Tensor,  # [N, D]
    normalize: bool,
    impl: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Per row: the distance [N] and, when wanted, dp [N, D]."""
    return choose("byol", impl, p, z).forward(p.detach(), z, normalize, with_grad)  # type: ignore[no-any-return]


def _equation(p: Tensor, z: Tensor, normalize: bool, impl: str) -> Tensor:
    """The reference in at least fp32, [N]."""
    return byol_reference(contract.widened(p), contract.widened(z), normalize=normalize, reduction="none")


def _byol_at_once(
    p: Tensor,  # [N, D]
    weight: Tensor | None,  # [N]
    z: Tensor,  # [N, D]
    normalize: bool,
    factor: float,
    offset: float,
    average: bool,
    kernel: ModuleType,
    with_grad: bool,
) -> tuple[Tensor | None, ...]:
    """Mean or sum [] of factor distance + offset and, when wanted, dp [N, D] and dweight [N]."""
    found: tuple[Tensor | None, ...]
    found = kernel.objective(p, weight, z, normalize, factor, offset, average, with_grad)
    return found


def _equation_at_once(
    p: Tensor,
    weight: Tensor | None,
    z: Tensor,
    normalize: bool,
    factor: float,
    offset: float,
    average: bool,
    kernel: Any,
) -> Tensor:
    """The reference in at least fp32, []."""
    rows = _equation(p, z, normalize, "") * factor + offset
    return contract.reduced(rows, weight, None, "mean", "mean" if average else "sum")


_DISTANCES = Objective(
    "byol", "Tensor p, Tensor z", "bool normalize, str impl", _byol, _equation, num_gradients=1, per_row=True
)
_AT_ONCE = Objective(
    "byol_at_once",
    "Tensor p, Tensor? weight, Tensor z",
    "bool normalize, float factor, float offset, bool average, kernel",
    _byol_at_once,
    _equation_at_once,
    num_gradients=2,
    registered=False,
)


def _reduced(
    p: Tensor,  # [N, D]
    z: Tensor,  # [N, D]
    normalize: bool,
    factor: float,
    offset: float,
    weight: Tensor | None,  # [N]
    group: Group,
    grad_reduce: str,
    reduction: str,
    impl: str,
) -> Tensor:
    """factor distance + offset of each sample, reduced."""
    contract.check_pair(("p", "z"), p, z)
    contract.check_weight(weight, p)
    contract.check_reduction(reduction)
    check_impl("byol", impl)
    gradient_factor(group, grad_reduce)
    z = z.detach()
    if reduction != "none" and group is None and p.numel() and contract.plainly():
        kernel = choose("byol", impl, p, z)
        if hasattr(kernel, "objective"):
            return _AT_ONCE((p, weight, z), (normalize, factor, offset, reduction == "mean", kernel))
    rows = _DISTANCES((p, z), (normalize, impl))
    rows = rows if factor == 1 and offset == 0 else rows * factor + offset
    return contract.reduced(rows, weight, group, grad_reduce, reduction)


def byol_loss(
    p: Tensor,  # [N, D]
    z: Tensor,  # [N, D]
    *,
    normalize: bool = True,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """BYOL's loss of one direction: predictions against the targets of the other view. Sum two calls for both.

    Rows are compared in fp32 (fp64 for fp64), under autocast too; the loss is at least fp32 and the gradient comes in
    the dtype of p. N = 0 gives 0 and an empty gradient. A zero row has a finite gradient.

    Args:
        p: predictions, [N, D].
        z: targets, [N, D]; they get no gradient.
        normalize: scale rows to unit length first (norms are clamped at 1e-12). False: the squared distance of the rows
            as they are.
        weight: weights >= 0 of the samples, [N]; "mean" is then the weighted mean. They may need a gradient.
        group: process group over which "mean" and "sum" run; local batches may differ in size. None: this process
            alone.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP): they are multiplied by the
            number of ranks. "sum" when they are added.
        reduction: "mean" or "sum" over the samples (of all ranks), or "none": [N], times the weights. Under "none"
            `grad_reduce` plays no part: `distributed.global_mean` applies it.
        impl: "auto", "triton", "cpp" or "reference".

    Returns:
        0-dim tensor, or [N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here.

    Example:
        >>> p, z = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
        >>> byol_loss(p, z).item()
        2.0

    Reference: Grill et al. 2020, arXiv:2006.07733, Eq. 2.
    """
    return _reduced(p, z, normalize, 1.0, 0.0, weight, group, grad_reduce, reduction, impl)


def simsiam_loss(
    p: Tensor,  # [N, D]
    z: Tensor,  # [N, D]
    *,
    weight: Tensor | None = None,  # [N]
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """SimSiam's negative cosine of one direction, as `byol_loss` / 2 - 1 per sample; its arguments but for `normalize`.

    Average two calls for the symmetrised loss.

    Returns:
        0-dim tensor in [-1, 1] under "mean", or [N].

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        RuntimeError: `impl` is not available here.

    Example:
        >>> p, z = torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0]])
        >>> round(simsiam_loss(p, z).item(), 6)
        -0.6

    Reference: Chen and He 2021, arXiv:2011.10566, Eq. 1.
    """
    return _reduced(p, z, True, 0.5, -1.0, weight, group, grad_reduce, reduction, impl)


class BYOLLoss(LossModule):
    """`byol_loss` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        normalize: bool = True,
        group: Group = None,
        grad_reduce: str = "mean",
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__(normalize=normalize, group=group, grad_reduce=grad_reduce, reduction=reduction, impl=impl)

    def forward(
        self,
        p: Tensor,  # [N, D]
        z: Tensor,  # [N, D]
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`byol_loss(p, z, weight=weight)` with the module's settings."""
        return byol_loss(p, z, weight=weight, **self.settings)


class SimSiamLoss(LossModule):
    """`simsiam_loss` as a module; the arguments are those of the function."""

    def __init__(
        self, *, group: Group = None, grad_reduce: str = "mean", reduction: str = "mean", impl: str = "auto"
    ) -> None:
        super().__init__(group=group, grad_reduce=grad_reduce, reduction=reduction, impl=impl)

    def forward(
        self,
        p: Tensor,  # [N, D]
        z: Tensor,  # [N, D]
        weight: Tensor | None = None,  # [N]
    ) -> Tensor:
        """`simsiam_loss(p, z, weight=weight)` with the module's settings."""
        return simsiam_loss(p, z, weight=weight, **self.settings)
