"""Everything random about one small case, from one integer."""

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.lists import DTYPES

SIZES = (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 31, 33, 40)
REDUCTIONS = ("mean", "sum", "none")


class Draw:
    """Everything random about a case."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype: torch.dtype = self.pick(*DTYPES)
        self.alignment = self.pick(0.0, 0.0, 0.5, 0.9, 1.0)
        # fp16 holds no gradient of a row of length 0, 1e12 times that of its unit row.
        self.zeros = self.dtype != torch.float16 and self.random.random() < 0.1

    def pick(self, *options: Any) -> Any:
        return self.random.choice(options)

    def size(self, least: int = 0) -> int:
        return max(least, self.pick(*SIZES))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def labels(self, num_classes: int, count: int) -> Tensor:
        return torch.randint(num_classes, (count,), generator=self.generator)

    def rows(self, *shape: int, unit: bool = False) -> Tensor:
        """[..., D] with lengths between 0.5 and 2 (or 1), which need a gradient."""
        rows = F.normalize(self.normal(*shape), dim=-1)
        if not unit:
            rows = rows * (0.5 + 1.5 * self.uniform(*shape[:-1], 1))
            rows = rows * (self.uniform(*shape[:-1], 1) > 0.2) if self.zeros else rows
        return rows.requires_grad_()

    def views(self, count: int, num_rows: int, dim: int) -> list[Tensor]:
        """[N, D] each; rows of one sample have about the cosine `alignment`."""
        common = F.normalize(self.normal(num_rows, dim), dim=1)
        share = self.alignment**0.5
        mixed = [share * common + (1 - share**2) ** 0.5 * self.rows(num_rows, dim).detach() for _ in range(count)]
        nothing = (self.uniform(num_rows, 1) < 0.2) & self.zeros
        return [view.masked_fill(nothing, 0).requires_grad_() for view in mixed]

    def common(self, num_rows: int, temperature: str = "temperature", largest: float = 1.0) -> Any:
        """(named, options) that the contrastive losses share; scales are the inverse of temperatures."""
        named, options = {}, {"normalize": self.pick(True, True, False), "reduction": self.pick(*REDUCTIONS)}
        value = self.pick(0.05, 0.1, 0.5, 1.0)
        number = torch.tensor(value if temperature == "temperature" else largest / value, dtype=torch.float64)
        if self.pick(True, False):
            named[temperature] = number.requires_grad_()
        else:
            options[temperature] = number.item()
        return named | self.weight(num_rows), options

    def weight(self, num_rows: int) -> dict[str, Tensor]:
        if self.pick(True, True, False):
            return {}
        weight = self.uniform(num_rows) * (self.uniform(num_rows) > 0.2)
        return {"weight": weight.requires_grad_(self.pick(True, False))}

    def layout(self) -> Callable[[Tensor], Tensor]:
        """The same numbers laid out otherwise in memory."""
        layouts: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda t: t,
            lambda t: t,
            lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
            lambda t: torch.cat((t, t), -1)[..., : t.shape[-1]],
            lambda t: torch.stack((t, t), 1)[:, 0],
        )
        chosen = self.pick(*layouts)
        return lambda t: chosen(t) if t.dim() > 1 else t
