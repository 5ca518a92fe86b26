"""MoCo's queue of keys: the negatives of `info_nce`.

Reference: He et al. 2020, arXiv:1911.05722, Alg. 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.distributed import Group, all_gather_rows
from ssl_fast.ops import contract


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
