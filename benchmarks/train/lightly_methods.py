"""Methods of lightly's networks, losses and transforms, put together as in its examples, for a run beside ours.

Sizes are those of `methods_beside_lightly.OURS`.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.train.beside_lightly import DIM, HIDDEN, NORMALIZE, Peer

MOMENTUM = 0.99
QUEUE = (4096, DIM)
WIDE = 512  # embedding of the methods whose loss is over dimensions, and SimSiam's
PROTOTYPES = 512
LOCALS, LOCAL_SIZE = 4, 16


class Teaching(Peer):
    """A peer with a momentum copy of `student`; `rising` is for those whose momentum ends at 1."""

    rising = True

    def add_teacher(self, head: Callable[[], nn.Module]) -> None:
        from lightly.models.utils import deactivate_requires_grad

        self.student = nn.Sequential(self.backbone, head())
        self.teacher = nn.Sequential(copy.deepcopy(self.backbone), head())  # weight norm refuses deepcopy
        self.teacher.load_state_dict(self.student.state_dict())
        deactivate_requires_grad(self.teacher)

    @torch.no_grad()
    def teach(self, views: Sequence[Tensor]) -> list[Tensor]:
        return [self.teacher(view) for view in views]

    def after_step(self, progress: float) -> None:
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        rising = cosine_schedule(round(progress * 1000), 1001, MOMENTUM, 1.0)
        update_momentum(self.student, self.teacher, m=rising if self.rising else MOMENTUM)


class MoCo(Teaching):
    rising = False

    def build(self, features: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead

        self.add_teacher(partial(MoCoProjectionHead, features, HIDDEN, DIM))
        self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=QUEUE)

    def loss(self, views: Sequence[Tensor], stacked: bool) -> Tensor:
        return self.criterion(self.student(views[0]), self.teach(views[1:])[0])


class BYOL(Teaching):
    def build(self, features: int) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

        self.add_teacher(partial(BYOLProjectionHead, features, HIDDEN, DIM))
        self.predictor = BYOLPredictionHead(DIM, HIDDEN, DIM)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, views: Sequence[Tensor], stacked: bool) -> Tensor:
        p0, p1 = (self.predictor(self.student(view)) for view in views)
        z0, z1 = self.teach(views)
        return 2 * (self.criterion(p0, z1) + self.criterion(p1, z0))  # the paper's scale, as ours


class SimSiam(Peer):
    def build(self, features: int) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

        self.projector = SimSiamProjectionHead(features, HIDDEN, WIDE)
        self.predictor = SimSiamPredictionHead(WIDE, WIDE // 4, WIDE)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, views: Sequence[Tensor], stacked: bool) -> Tensor:
        z0, z1 = (self.projector(self.backbone(view)) for view in views)
        p0, p1 = self.predictor(z0), self.predictor(z1)
        return (self.criterion(p0, z1.detach()) + self.criterion(p1, z0.detach())) / 2


class NNCLR(Peer):
    def build(self, features: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import NNCLRPredictionHead, NNCLRProjectionHead, NNMemoryBankModule

        self.projector = NNCLRProjectionHead(features, HIDDEN, DIM)
        self.predictor = NNCLRPredictionHead(DIM, HIDDEN, DIM)
        self.bank = NNMemoryBankModule(size=QUEUE)
        self.criterion = NTXentLoss(temperature=0.2)

    def loss(self, views: Sequence[Tensor], stacked: bool) -> Tensor:
        z0, z1 = (self.projector(self.backbone(view)) for view in views)
        p0, p1 = self.predictor(z0), self.predictor(z1)
        n0, n1 = self.bank(z0.detach(), update=False), self.bank(z1.detach(), update=True)
        return (self.criterion(n0, p1) + self.criterion(n1, p0)) / 2


class VICReg(Peer):
    lr = 0.02

    def build(self, features: int) -> None:
        from lightly.loss import VICRegLoss
        from lightly.models.modules.heads import VICRegProjectionHead

        self.projector = VICRegProjectionHead(features, WIDE, WIDE)
        self.criterion = VICRegLoss()

    def loss(self, views: Sequence[Tensor], stacked: bool) -> Tensor:
        return self.criterion(*(self.projector(self.backbone(view)) for view in views))


class BarlowTwins(Peer):
    lr = 0.01

    def build(self, features: int) -> None:
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules import BarlowTwinsProjectionHead

        self.projector = BarlowTwinsProjectionHead(features, WIDE, WIDE)
        self.criterion = BarlowTwinsLoss(lambda_param=0.0051)

    def loss(self, views: Sequence[Tensor], stacked: bool) -> Tensor:
        return self.criterion(*(self.projector(self.backbone(view)) for view in views))


class SwAV(Peer):
    def build(self, features: int) -> None:
        from lightly.loss import SwaVLoss
        from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes

        self.projector = SwaVProjectionHead(features, HIDDEN, DIM)
        self.prototypes = SwaVPrototypes(DIM, PROTOTYPES)
        self.criterion = SwaVLoss()

    def transform(self) -> Any:
        from lightly.transforms import SwaVTransform

        sizes, counts = (32, LOCAL_SIZE), (2, LOCALS)
        return SwaVTransform(sizes, counts, cj_strength=0.5, gaussian_blur=0.0, normalize=NORMALIZE)

    def loss(self, views: Sequence[Tensor], stacked: bool) -> Tensor:
        self.prototypes.normalize()
        unit = [nn.functional.normalize(self.projector(self.backbone(view)), dim=1) for view in views]
        logits = [self.prototypes(z) for z in unit]
        return self.criterion(logits[:2], logits[2:])


class DINO(Teaching):
    def build(self, features: int) -> None:
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead

        self.add_teacher(partial(DINOProjectionHead, features, HIDDEN, DIM, PROTOTYPES))
        self.criterion = DINOLoss(output_dim=PROTOTYPES, warmup_teacher_temp_epochs=0)

    def transform(self) -> Any:
        from lightly.transforms import DINOTransform

        return DINOTransform(
            global_crop_size=32,
            local_crop_size=LOCAL_SIZE,
            n_local_views=LOCALS,
            cj_sat=0.8,
            gaussian_blur=(0.0, 0.0, 0.0),
            solarization_prob=0.0,
            normalize=NORMALIZE,
        )

    def loss(self, views: Sequence[Tensor], stacked: bool) -> Tensor:
        return self.criterion(self.teach(views[:2]), [self.student(view) for view in views], epoch=0)


PEERS: dict[str, type[Peer]] = {
    "barlow_twins": BarlowTwins,
    "byol": BYOL,
    "dino": DINO,
    "moco": MoCo,
    "nnclr": NNCLR,
    "simclr": Peer,
    "simsiam": SimSiam,
    "swav": SwAV,
    "vicreg": VICReg,
}
