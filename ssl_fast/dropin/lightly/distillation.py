"""DINO, SwAV and SimSiam's cosine, as lightly calls them."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_fast.distributed import world
from ssl_fast.dropin.lightly.contrastive import _check_gather
from ssl_fast.ops.byol import simsiam_loss
from ssl_fast.ops.contract import widened
from ssl_fast.ops.dino import dino_loss
from ssl_fast.ops.prototypes import Pairs, compare
from ssl_fast.ops.sinkhorn import balance_logits, check_settings


class DINOLoss(nn.Module):
    """DINO with a centre and a warm-up of the teacher's temperature.

    The teacher's outputs get no gradient (there they do, unless they are detached). The centre keeps its address and
    its dtype. As there, it is averaged over all ranks wherever a process group is up.

    Args:
        output_dim: number of prototypes K.
        warmup_teacher_temp: the teacher's temperature in epoch 0, where `forward` is given an epoch.
        teacher_temp: the teacher's temperature after the warm-up, and where `forward` is given neither.
        warmup_teacher_temp_epochs: epochs of the warm-up.
        student_temp: the student's temperature.
        center_momentum: what stays of the centre in each step.
        center_mode: "mean".

    Attributes:
        center: [1, 1, K], in the state dict.

    Reference: Caron et al. 2021, arXiv:2104.14294, Eq. 3 and 4.
    """

    center: Tensor

    def __init__(
        self,
        output_dim: int = 65536,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 30,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        center_mode: str = "mean",
    ) -> None:
        super().__init__()
        if center_mode != "mean":
            raise ValueError(f"Unknown mode '{center_mode}'. Valid modes are ['mean'].")
        self.teacher_temp, self.student_temp, self.center_momentum = teacher_temp, student_temp, center_momentum
        self.warmup_teacher_temp_epochs = warmup_teacher_temp_epochs
        self.teacher_temp_schedule = torch.linspace(warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        self.register_buffer("center", torch.zeros(1, 1, output_dim))

    def forward(
        self,
        teacher_out: Sequence[Tensor],  # each [N, K]
        student_out: Sequence[Tensor],  # each [N, K]
        teacher_temp: float | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """The mean over this rank's samples and the pairs of different views; then the centre moves."""
        teacher = torch.stack(list(teacher_out)).detach()
        loss = dino_loss(
            torch.stack(list(student_out)),
            teacher,
            student_temperature=self.student_temp,
            teacher_temperature=self._temperature(teacher_temp, epoch),
            center=self.center.flatten(),
        )
        self.update_center(teacher)
        return loss

    def _temperature(self, teacher_temp: float | None, epoch: int | None) -> float:
        """In fp32, as lightly holds it: the same number in float64 too."""
        if teacher_temp is None and epoch is not None and epoch < self.warmup_teacher_temp_epochs:
            return float(self.teacher_temp_schedule[epoch])
        return float(torch.tensor(self.teacher_temp if teacher_temp is None else teacher_temp, dtype=torch.float32))

    @torch.no_grad()
    def update_center(
        self,
        teacher_out: Tensor,  # [V, N, K]
    ) -> None:
        """Moves the centre towards the mean of the teacher's outputs, over all ranks."""
        mean = widened(teacher_out).mean((0, 1), keepdim=True)
        group = world()
        if group is not None:
            dist.all_reduce(mean, group=group)
            mean = mean / dist.get_world_size(group)
        self.center.copy_(self.center * self.center_momentum + mean * (1 - self.center_momentum))


class SwaVLoss(nn.Module):
    """SwAV's swapped assignments between crops.

    Outputs so large that exp(outputs / sinkhorn_epsilon) overflows give NaN there, and their value here. Not served:
    no iteration of Sinkhorn, and a single crop (both ValueError; there the second is NaN).

    Args:
        temperature: of the predictions.
        sinkhorn_iterations: at least 1.
        sinkhorn_epsilon: temperature of the assignments.
        sinkhorn_gather_distributed: balance the assignments over the outputs of all ranks.

    Reference: Caron et al. 2020, arXiv:2006.09882, Eq. 2 and 6.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        _check_gather(sinkhorn_gather_distributed)
        check_settings(sinkhorn_epsilon, sinkhorn_iterations)
        self.temperature, self.sinkhorn_iterations = temperature, sinkhorn_iterations
        self.sinkhorn_epsilon, self.sinkhorn_gather_distributed = sinkhorn_epsilon, sinkhorn_gather_distributed

    def forward(
        self,
        high_resolution_outputs: Sequence[Tensor],  # each [N, K]
        low_resolution_outputs: Sequence[Tensor],  # each [N, K]
        queue_outputs: Sequence[Tensor] | None = None,  # each [Q, K], one per high-resolution crop
    ) -> Tensor:
        """The mean over this rank's samples, of shape [1] as there. The queue takes part in the balancing alone."""
        views = torch.stack([*high_resolution_outputs, *low_resolution_outputs])
        fixed = views.detach()[: len(high_resolution_outputs)]
        pairs = Pairs(self.temperature, self.sinkhorn_epsilon, True, None, "mean", "mean", "auto")
        pairs.check(views, fixed, None, None)
        queues = [None] * len(fixed) if queue_outputs is None else [queue_outputs[i] for i in range(len(fixed))]
        bias = torch.stack([self._log_prototypes(view, queue) for view, queue in zip(fixed, queues, strict=True)])
        return compare(views, None, fixed, None, bias, None, pairs)[None]

    def _log_prototypes(
        self,
        outputs: Tensor,  # [N, K]
        queue: Tensor | None,  # [Q, K]
    ) -> Tensor:
        """What balances the assignments of these outputs, [K]."""
        outputs = outputs if queue is None else torch.cat((outputs, queue.detach()))
        group = world() if self.sinkhorn_gather_distributed else None
        return balance_logits(outputs, self.sinkhorn_epsilon, self.sinkhorn_iterations, group)


class NegativeCosineSimilarity(nn.Module):
    """The mean of minus the cosine between the rows of two tensors; both get gradients.

    Rows are divided by their length even where it is below `eps` (there by `eps`), and a pair with a row of zeros
    counts -1/2 with no gradient of the other row (there 0).

    Args:
        dim: the dimension that rows lie in.
        eps: taken for lightly's sake.

    Reference: Chen and He 2021, arXiv:2011.10566, Eq. 1.
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(
        self,
        x0: Tensor,  # [N, D], or of any shape
        x1: Tensor,  # of a shape that goes with it
    ) -> Tensor:
        """The mean over all rows."""
        shape = torch.broadcast_shapes(x0.shape, x1.shape)  # type: ignore[no-untyped-call]
        x0, x1 = (x.expand(shape).movedim(self.dim, -1).flatten(0, -2) for x in (x0, x1))
        loss = simsiam_loss(x0, x1)
        if not x1.requires_grad:
            return loss
        # The op's second argument is a constant to it: the other way round gives its gradient.
        again = simsiam_loss(x1, x0)
        return loss + (again - again.detach())
