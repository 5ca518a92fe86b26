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
    from ssl_fast.ops.dispatch import backends as backends
    from ssl_fast.ops.gradients import centralize_gradients_ as centralize_gradients_
    from ssl_fast.ops.gradients import clip_grad_norm_ as clip_grad_norm_
    from ssl_fast.ops.info_nce import InfoNCELoss as InfoNCELoss
    from ssl_fast.ops.info_nce import MoCoQueue as MoCoQueue
    from ssl_fast.ops.info_nce import info_nce as info_nce
    from ssl_fast.ops.nt_xent import NTXentLoss as NTXentLoss
    from ssl_fast.ops.nt_xent import nt_xent as nt_xent
    from ssl_fast.optim import EMA as EMA
    from ssl_fast.optim import LAMB as LAMB
    from ssl_fast.optim import LARS as LARS
    from ssl_fast.optim import SAM as SAM
    from ssl_fast.optim import GradientCentralization as GradientCentralization
    from ssl_fast.optim import Lookahead as Lookahead

__version__ = "0.1.0"

_HOME = {
    "backends": "ssl_fast.ops.dispatch",
    "nt_xent": "ssl_fast.ops.nt_xent",
    "NTXentLoss": "ssl_fast.ops.nt_xent",
    "info_nce": "ssl_fast.ops.info_nce",
    "InfoNCELoss": "ssl_fast.ops.info_nce",
    "MoCoQueue": "ssl_fast.ops.info_nce",
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
