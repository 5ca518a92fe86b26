"""lightly's losses: change `from lightly.loss import NTXentLoss` to `from ssl_fast.dropin.lightly import NTXentLoss`.

Constructors, forward calls, values, gradients and the keys of state dicts are lightly's (1.6). What differs in all:
losses of half-precision inputs are computed and returned in fp32, and wrong arguments raise ValueError (there at times
AssertionError). Further differences, and what is not served, stand in the docstrings of the classes.

`gather_distributed=True` means all ranks of the default process group, as there: each rank returns the mean over its
own rows, and gradients are those of the sum of the ranks' losses, which DistributedDataParallel averages.
"""

from ssl_fast.dropin.lightly.contrastive import DCLLoss, DCLWLoss, MemoryBankModule, NTXentLoss
from ssl_fast.dropin.lightly.distillation import DINOLoss, NegativeCosineSimilarity, SwaVLoss
from ssl_fast.dropin.lightly.redundancy import BarlowTwinsLoss, VICRegLoss

__all__ = [
    "BarlowTwinsLoss",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "MemoryBankModule",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "SwaVLoss",
    "VICRegLoss",
]
