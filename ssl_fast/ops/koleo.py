r"""KoLeo: spreads a batch evenly over the sphere by pushing every embedding away from its nearest neighbour.

    loss_i = -log(|z_i - z_n(i)| + eps),  n(i) = argmax over j != i of <z_i, z_j>
with z at unit length. The gradient reaches both ends of every pair; n(i) is a choice and has none.

Letters: N samples (M of all ranks), D embedding.

Reference: Sablayrolles et al. 2019, "Spreading vectors for similarity search", arXiv:1806.03198, Eq. 2 and 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.distributed import Group, all_gather_rows, gather_sizes, group_by_name
from ssl_fast.ops import contract
from ssl_fast.ops.dispatch import check_impl, choose
from ssl_fast.ops.loss_module import LossModule
from ssl_fast.ops.objective import Rows


def koleo_reference(
    x: Tensor,  # [N, D]
    *,
    eps: float = 1e-8,
    reduction: str = "mean",
) -> Tensor:
    """The equation in plain torch, in the dtype of x: oracle and baseline. 0 for fewer than two rows."""
    z = F.normalize(x, dim=1, eps=1e-12)
    if len(z) < 2:
        return contract.reduced(z.sum(1) * 0, None, None, "mean", reduction)
    cosines = (z.detach() @ z.detach().T).fill_diagonal_(-2)
    squares = (z - z[cosines.argmax(1)]).square().sum(1)
    # Twice `where`: rows that coincide get the gradient 0, not that of sqrt at 0.
    apart = squares > 0
    distance = torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0)
    return contract.reduced(-(distance + eps).log(), None, None, "mean", reduction)


def _koleo(
    x: Tensor,  # [N, D]
    eps: float,
    group: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row [N]; and for the backward pass all ranks' rows z [M, D], at unit length, and n [M]."""
    process_group = group_by_name(group) if group else None
    sizes = gather_sizes(len(x), process_group, x.device)
    z = F.normalize(contract.widened(all_gather_rows(x, process_group, sizes)), dim=1, eps=1e-12)
    begin = sum(sizes[: process_group.rank()]) if process_group is not None else 0
    if len(z) < 2:
        return z.new_zeros(len(x)), z, torch.zeros(len(z), dtype=torch.int64, device=z.device)
    mine = choose("koleo", impl, z).neighbours(z, begin, begin + len(x))
    distance = (z[begin : begin + len(x)] - z[mine]).norm(dim=1)
    return -(distance + eps).log(), z, all_gather_rows(mine, process_group, sizes)


def _koleo_backward(
    upstream: Tensor,  # [N]
    z: Tensor,  # [M, D]
    neighbour: Tensor,  # [M] int64
    x: Tensor,  # [N, D]
    eps: float,
    group: str,
    impl: str,
) -> Tensor:
    """dx [N, D]. The other ranks' rows and neighbours are here: only the upstream numbers [M] are exchanged."""
    process_group = group_by_name(group) if group else None
    sizes = gather_sizes(len(x), process_group, x.device)
    begin = sum(sizes[: process_group.rank()]) if process_group is not None else 0
    if len(z) < 2:
        return z.new_zeros(x.shape)
    coef = all_gather_rows(upstream.to(z.dtype).contiguous(), process_group, sizes)
    apart = z - z[neighbour]
    distance = apart.norm(dim=1)
    # d -log(rho + eps) = -(z_i - z_n) / (rho (rho + eps)); rows that coincide have no direction.
    coef = torch.where(distance > 0, -coef / ((distance + eps) * distance), 0)
    pull = apart.mul_(coef[:, None])  # [M, D]
    dz = pull.clone()
    if z.device.type == "cuda":
        dz.index_put_((neighbour,), -pull, accumulate=True)  # sorts first: the same bits every time
    else:
        dz.index_add_(0, neighbour, pull, alpha=-1)  # one row after the other
    dz, unit = dz[begin : begin + len(x)], z[begin : begin + len(x)]
    norm = contract.widened(x.detach()).norm(dim=1, keepdim=True)
    along = torch.where(norm > 1e-12, (unit * dz).sum(1, keepdim=True), 0)
    dx: Tensor = (dz - unit * along) / norm.clamp_min(1e-12)
    return dx


def _equation(x: Tensor, eps: float, group: str, impl: str) -> Tensor:
    """The reference in at least fp32, [N]."""
    return koleo_reference(contract.widened(x), eps=eps, reduction="none")


def _fake(x: Tensor, eps: float, group: str, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    num_rows = torch.library.get_ctx().new_dynamic_size() if group else len(x)
    z = x.new_empty((num_rows, x.shape[1]), dtype=dtype)
    return x.new_empty(len(x), dtype=dtype), z, x.new_empty(num_rows, dtype=torch.int64)


_ROWS = Rows(
    "koleo",
    "Tensor x",
    "float eps, str group, str impl",
    _koleo,
    _koleo_backward,
    _equation,
    _fake,
    num_gradients=1,
    num_kept=2,
)


def koleo(
    x: Tensor,  # [N, D]
    *,
    eps: float = 1e-8,
    group: Group = None,
    grad_reduce: str = "mean",
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """The KoLeo regulariser: minus the log of the distance of each embedding to the nearest other one.

    Nearest neighbours are found with at least fp32, under autocast too, and without the N x N similarities. Rows that
    coincide cost -log(eps) and get no gradient from each other; of fewer than two rows the loss is 0.

    Args:
        x: embeddings of any length, [N, D].
        eps: added to each distance.
        group: process group over whose rows neighbours are sought and "mean" and "sum" run; N may differ. Rows and
            neighbours are gathered once; the backward pass exchanges one number a row.
        grad_reduce: "mean" when gradients are averaged over the ranks afterwards (DDP), "sum" when they are added.
        reduction: "mean" or "sum" over the rows (of all ranks), or "none": [N].
        impl: "auto", "cpp" or "reference".

    Returns:
        0-dim tensor, or [N]; float64 for float64, else float32.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value.
        RuntimeError: `impl` is not available here, or a second derivative or torch.func is asked for with a group.

    Example:
        >>> round(koleo(torch.eye(3)).item(), 4)  # all sqrt(2) apart
        -0.3466

    Reference: Sablayrolles et al. 2019, arXiv:1806.03198, Eq. 3.
    """
    contract.check_rows("x", x)
    contract.check_reduction(reduction)
    check_impl("koleo", impl)
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    rows = _ROWS((x,), (eps, "" if group is None else group.group_name, impl))
    return contract.reduced(rows, None, group, grad_reduce, reduction)


class KoLeoLoss(LossModule):
    """`koleo` as a module; the arguments are those of the function."""

    def __init__(
        self,
        *,
        eps: float = 1e-8,
        group: Group = None,
        grad_reduce: str = "mean",
        reduction: str = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__(eps=eps, group=group, grad_reduce=grad_reduce, reduction=reduction, impl=impl)

    def forward(
        self,
        x: Tensor,  # [N, D]
    ) -> Tensor:
        """`koleo(x)` with the module's settings."""
        return koleo(x, **self.settings)
