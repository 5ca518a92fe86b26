"""NT-Xent with and without a memory bank, and decoupled contrastive learning, as lightly calls them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.distributed import Group, all_gather_rows, world
from ssl_fast.ops.contract import widened
from ssl_fast.ops.dcl import dcl
from ssl_fast.ops.info_nce import info_nce
from ssl_fast.ops.nt_xent import nt_xent


class NTXentLoss(nn.Module):
    """NT-Xent: the two views of a batch against each other, or the first against the second and a memory bank.

    A negative temperature, which turns likeness into its opposite, goes through the reference of the ops.

    Args:
        temperature: of the softmax.
        memory_bank_size: (number of rows, dimension) of the memory bank; 0: none. A number of rows alone, which lightly
            took before 1.6, has the dimension of the first batch.
        gather_distributed: take the rows of all ranks as negatives; with a memory bank, write them into it.

    Example:
        >>> loss = NTXentLoss(temperature=0.1, memory_bank_size=(64, 8))(torch.randn(4, 8), torch.randn(4, 8))

    Reference: Chen et al. 2020, arXiv:2002.05709, Eq. 1; He et al. 2020, arXiv:1911.05722, Eq. 1.
    """

    def __init__(
        self, temperature: float = 0.5, memory_bank_size: int | Sequence[int] = 0, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed)
        if abs(temperature) < 1e-8:
            raise ValueError(f"Illegal temperature: abs({temperature}) < 1e-8")
        _check_gather(gather_distributed)
        self.temperature, self.gather_distributed = temperature, gather_distributed

    def forward(
        self,
        out0: Tensor,  # [N, D]
        out1: Tensor,  # [N, D]
    ) -> Tensor:
        """The mean over this rank's rows. The bank takes the rows of `out1` in when `out0` requires a gradient."""
        if self.memory_bank.size[0] > 0:
            _, negatives = self.memory_bank(F.normalize(out1.detach(), dim=1), update=out0.requires_grad)
            queue = negatives.T.to(out0.device)
            return info_nce(out0, out1, queue, **_of_any_sign(self.temperature))
        group = world() if self.gather_distributed else None
        if group is None:
            return nt_xent(out0, out1, **_of_any_sign(self.temperature))
        return nt_xent(out0, out1, **_of_any_sign(self.temperature), group=group, reduction="none").mean()


def _of_any_sign(temperature: float) -> dict[str, Any]:
    """The ops take a number only if it is positive, and the kernels may count on that; a tensor is not looked at."""
    if temperature > 0:
        return {"temperature": temperature}
    return {"temperature": torch.tensor(temperature, dtype=torch.float64), "impl": "reference"}


class MemoryBankModule(nn.Module):
    """A ring of rows that were outputs before; not in the state dict, as in lightly.

    A batch that does not fit in front of the end fills the rest; what is over is dropped, and the next one begins at
    the front. Nothing is read on the host.

    Args:
        size: (number of rows K, dimension D); 0: no bank; K: of the dimension of the first output.
        gather_distributed: write the rows of all ranks.
        feature_dim_first: give the rows as [D, K].

    Attributes:
        bank: [K, D].
        bank_ptr: [1], where the next row goes.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(
        self, size: int | Sequence[int], gather_distributed: bool = False, feature_dim_first: bool = True
    ) -> None:
        super().__init__()
        shape = (size,) if isinstance(size, int) else tuple(size)
        if any(number < 0 for number in shape):
            raise ValueError(f"Illegal memory bank size {size}, all entries must be non-negative.")
        if len(shape) not in (1, 2):
            raise ValueError(f"Illegal memory bank size {size}, expected (num_features, dim), or 0 for no memory bank.")
        self.size, self.gather_distributed, self.feature_dim_first = shape, gather_distributed, feature_dim_first
        first = torch.empty(shape) if len(shape) == 1 else _random_rows(shape)
        self.register_buffer("bank", first, persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(
        self,
        output: Tensor,  # [N, D]
        labels: Tensor | None = None,
        update: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output and the rows as they were; `update` then writes the output over the oldest of them."""
        if self.size[0] == 0:
            return output, None
        if self.bank.dim() == 1:
            self.bank = _random_rows((self.size[0], output.shape[1])).to(self.bank)
        bank = self.bank.clone() if update else self.bank.detach()
        if update:
            self._enqueue_(output)
        return output, bank.T if self.feature_dim_first else bank

    @torch.no_grad()
    def _enqueue_(
        self,
        rows: Tensor,  # [N, D]
    ) -> None:
        rows = all_gather_rows(rows, world() if self.gather_distributed else None)
        size, count = len(self.bank), len(rows)
        kept = rows[:size].to(self.bank)
        place = torch.arange(len(kept), device=self.bank.device) + self.bank_ptr
        # Places behind the end come round and are written with what is there: no size depends on the pointer.
        where = place % size
        self.bank.index_copy_(0, where, torch.where((place < size)[:, None], kept, self.bank[where]))
        following = self.bank_ptr + count
        self.bank_ptr.copy_(torch.where(following >= size, 0, following))


def _random_rows(shape: Sequence[int]) -> Tensor:
    return F.normalize(torch.randn(tuple(shape)), dim=-1)


Weights = Callable[[Tensor, Tensor], Tensor]


class DCLLoss(nn.Module):
    """Decoupled contrastive learning.

    A batch of one sample on one rank has no negatives and the loss 0 (there minus infinity).

    Args:
        temperature: of the softmax.
        weight_fn: (rows of one view, rows of the other, both of unit length) -> weights of the positives [N], called
            once for each direction; they may have gradients. None: 1 each.
        gather_distributed: take the rows of all ranks as negatives.

    Reference: Yeh et al. 2022, arXiv:2110.06848, Eq. 6.
    """

    def __init__(
        self, temperature: float = 0.1, weight_fn: Weights | None = None, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        _check_gather(gather_distributed)
        self.temperature, self.weight_fn, self.gather_distributed = temperature, weight_fn, gather_distributed

    def forward(
        self,
        out0: Tensor,  # [N, D]
        out1: Tensor,  # [N, D]
    ) -> Tensor:
        """The mean over this rank's rows."""
        group: Group = world() if self.gather_distributed else None
        if group is None:
            loss = dcl(out0, out1, temperature=self.temperature)
        else:
            loss = dcl(out0, out1, temperature=self.temperature, group=group, reduction="none").mean()
        return loss if self.weight_fn is None else loss + self._weighting(out0, out1, self.weight_fn)

    def _weighting(
        self,
        out0: Tensor,  # [N, D]
        out1: Tensor,  # [N, D]
        weight_fn: Weights,
    ) -> Tensor:
        """What weights other than 1 add."""
        with torch.autocast(out0.device.type, enabled=False):
            z0, z1 = F.normalize(widened(out0), dim=1), F.normalize(widened(out1), dim=1)
            more = 1 - (weight_fn(z0, z1) + weight_fn(z1, z0)) / 2
            return (more * (z0 * z1).sum(1)).mean() / self.temperature


class DCLWLoss(DCLLoss):
    """`DCLLoss` with the negative von Mises-Fisher weights, which are normalised over this rank's rows.

    Args:
        temperature: of the softmax.
        sigma: width of the weights.
        gather_distributed: take the rows of all ranks as negatives.

    Reference: Yeh et al. 2022, arXiv:2110.06848, Section 3.
    """

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False) -> None:
        super().__init__(temperature, partial(negative_mises_fisher_weights, sigma=sigma), gather_distributed)


def negative_mises_fisher_weights(
    out0: Tensor,  # [N, D] unit rows
    out1: Tensor,  # [N, D] unit rows
    sigma: float = 0.5,
) -> Tensor:
    """2 - exp(<z_i, z'_i> / sigma) over its mean, [N]; no gradient."""
    scaled = (out0.detach() * out1.detach()).sum(1) / sigma
    return 2 - len(scaled) * scaled.softmax(0)


def _check_gather(gather_distributed: bool) -> None:
    if gather_distributed and not dist.is_available():
        raise ValueError("gather_distributed is True, but this torch has no torch.distributed")
