"""Contrastive and self-supervised learning of image representations: fused ops, optimisers and a whole pipeline.

The public names load on first use: `import ssl_fast` takes no time and needs torch alone.

Example:
    >>> import torch, ssl_fast
    >>> z1, z2 = torch.randn(8, 32), torch.randn(8, 32)
    >>> ssl_fast.nt_xent(z1, z2, temperature=0.5).shape
    torch.Size([])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_fast.data.augment import augment as augment
    from ssl_fast.ops.adaface import adaface as adaface
    from ssl_fast.ops.arcface import arcface as arcface
    from ssl_fast.ops.arcface import combined_margin as combined_margin
    from ssl_fast.ops.arcface import cosface as cosface
    from ssl_fast.ops.barlow_twins import BarlowTwinsLoss as BarlowTwinsLoss
    from ssl_fast.ops.barlow_twins import barlow_twins as barlow_twins
    from ssl_fast.ops.byol import BYOLLoss as BYOLLoss
    from ssl_fast.ops.byol import SimSiamLoss as SimSiamLoss
    from ssl_fast.ops.byol import byol_loss as byol_loss
    from ssl_fast.ops.byol import simsiam_loss as simsiam_loss
    from ssl_fast.ops.clip_loss import CLIPLoss as CLIPLoss
    from ssl_fast.ops.clip_loss import clip_loss as clip_loss
    from ssl_fast.ops.curricularface import curricularface as curricularface
    from ssl_fast.ops.dcl import DCLLoss as DCLLoss
    from ssl_fast.ops.dcl import dcl as dcl
    from ssl_fast.ops.dino import DINOCenter as DINOCenter
    from ssl_fast.ops.dino import DINOLoss as DINOLoss
    from ssl_fast.ops.dino import dino_loss as dino_loss
    from ssl_fast.ops.dispatch import backends as backends
    from ssl_fast.ops.gradients import centralize_gradients_ as centralize_gradients_
    from ssl_fast.ops.gradients import clip_grad_norm_ as clip_grad_norm_
    from ssl_fast.ops.ibot import IBOTLoss as IBOTLoss
    from ssl_fast.ops.ibot import ibot_loss as ibot_loss
    from ssl_fast.ops.info_nce import InfoNCELoss as InfoNCELoss
    from ssl_fast.ops.info_nce import info_nce as info_nce
    from ssl_fast.ops.knn_topk import knn_topk as knn_topk
    from ssl_fast.ops.koleo import KoLeoLoss as KoLeoLoss
    from ssl_fast.ops.koleo import koleo as koleo
    from ssl_fast.ops.margin_head import MarginHead as MarginHead
    from ssl_fast.ops.moco_queue import MoCoQueue as MoCoQueue
    from ssl_fast.ops.nt_xent import NTXentLoss as NTXentLoss
    from ssl_fast.ops.nt_xent import nt_xent as nt_xent
    from ssl_fast.ops.siglip_loss import SigLIPLoss as SigLIPLoss
    from ssl_fast.ops.siglip_loss import siglip_loss as siglip_loss
    from ssl_fast.ops.sinkhorn import sinkhorn as sinkhorn
    from ssl_fast.ops.supcon import SupConLoss as SupConLoss
    from ssl_fast.ops.supcon import supcon as supcon
    from ssl_fast.ops.swav import SwAVLoss as SwAVLoss
    from ssl_fast.ops.swav import swav_loss as swav_loss
    from ssl_fast.ops.vicreg import VICRegLoss as VICRegLoss
    from ssl_fast.ops.vicreg import vicreg as vicreg
    from ssl_fast.optim import EMA as EMA
    from ssl_fast.optim import LAMB as LAMB
    from ssl_fast.optim import LARS as LARS
    from ssl_fast.optim import SAM as SAM
    from ssl_fast.optim import GradientCentralization as GradientCentralization
    from ssl_fast.optim import Lookahead as Lookahead

__version__ = "0.1.0"

_HOME = {
    "backends": "ssl_fast.ops.dispatch",
    "augment": "ssl_fast.data.augment",
    "nt_xent": "ssl_fast.ops.nt_xent",
    "NTXentLoss": "ssl_fast.ops.nt_xent",
    "info_nce": "ssl_fast.ops.info_nce",
    "InfoNCELoss": "ssl_fast.ops.info_nce",
    "MoCoQueue": "ssl_fast.ops.moco_queue",
    "byol_loss": "ssl_fast.ops.byol",
    "BYOLLoss": "ssl_fast.ops.byol",
    "simsiam_loss": "ssl_fast.ops.byol",
    "SimSiamLoss": "ssl_fast.ops.byol",
    "vicreg": "ssl_fast.ops.vicreg",
    "VICRegLoss": "ssl_fast.ops.vicreg",
    "barlow_twins": "ssl_fast.ops.barlow_twins",
    "BarlowTwinsLoss": "ssl_fast.ops.barlow_twins",
    "knn_topk": "ssl_fast.ops.knn_topk",
    "dino_loss": "ssl_fast.ops.dino",
    "DINOLoss": "ssl_fast.ops.dino",
    "DINOCenter": "ssl_fast.ops.dino",
    "ibot_loss": "ssl_fast.ops.ibot",
    "IBOTLoss": "ssl_fast.ops.ibot",
    "swav_loss": "ssl_fast.ops.swav",
    "SwAVLoss": "ssl_fast.ops.swav",
    "sinkhorn": "ssl_fast.ops.sinkhorn",
    "koleo": "ssl_fast.ops.koleo",
    "KoLeoLoss": "ssl_fast.ops.koleo",
    "arcface": "ssl_fast.ops.arcface",
    "cosface": "ssl_fast.ops.arcface",
    "combined_margin": "ssl_fast.ops.arcface",
    "adaface": "ssl_fast.ops.adaface",
    "curricularface": "ssl_fast.ops.curricularface",
    "MarginHead": "ssl_fast.ops.margin_head",
    "clip_loss": "ssl_fast.ops.clip_loss",
    "CLIPLoss": "ssl_fast.ops.clip_loss",
    "siglip_loss": "ssl_fast.ops.siglip_loss",
    "SigLIPLoss": "ssl_fast.ops.siglip_loss",
    "supcon": "ssl_fast.ops.supcon",
    "SupConLoss": "ssl_fast.ops.supcon",
    "dcl": "ssl_fast.ops.dcl",
    "DCLLoss": "ssl_fast.ops.dcl",
    "LARS": "ssl_fast.optim",
    "EMA": "ssl_fast.optim",
    "SAM": "ssl_fast.optim",
    "LAMB": "ssl_fast.optim",
    "Lookahead": "ssl_fast.optim",
    "GradientCentralization": "ssl_fast.optim",
    "clip_grad_norm_": "ssl_fast.ops.gradients",
    "centralize_gradients_": "ssl_fast.ops.gradients",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssl_fast' has no attribute {name!r}")
    # `import_module` binds the sub-packages first; the public name is set after, and found directly from then on.
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
