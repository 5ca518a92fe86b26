"""What the book measures: the sizes of every op, and in which precisions."""

import contextlib
from collections.abc import Iterator

import torch

# What inputs are, and how torch is told to multiply float32.
PRECISIONS = {
    "bfloat16": (torch.bfloat16, "highest"),
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
}
BF16, FULL, TF32 = PRECISIONS
# By op: the headline size first, then the others; precisions of the headline, of which the others take the first.
SIZES: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]] = {
    "nt_xent": (((8192, 128), (65536, 128), (4096, 128), (1024, 128), (32768, 128), (65536, 256)), (BF16, FULL, TF32)),
    "info_nce": (((1024, 65536, 128), (256, 65536, 128), (4096, 65536, 128), (512, 65536, 128)), (BF16, FULL, TF32)),
    "arcface": (
        ((1024, 100_000, 512), (512, 10_000, 512), (4096, 100_000, 512), (1024, 1_000_000, 512)),
        (BF16, FULL, TF32),
    ),
    "dino_loss": (((512, 65536, 256),), (BF16,)),
    "siglip_loss": (((8192, 768), (65536, 768)), (BF16,)),
    "clip_loss": (((8192, 768), (32768, 768)), (BF16,)),
    "sinkhorn": (((1024, 65536), (4096, 3000)), (FULL, BF16)),
    "supcon": (((8192, 128),), (BF16,)),
    "dcl": (((8192, 128),), (BF16,)),
    "byol_loss": (((4096, 256), (512, 2048)), (FULL, BF16)),
    "knn_topk": (((4096, 65536, 512, 200), (4096, 65536, 512, 20)), (FULL, TF32)),
    "curricularface": (((1024, 100_000, 512),), (BF16,)),
    "koleo": (((4096, 384),), (FULL, TF32)),
    "vicreg": (((2048, 8192), (256, 8192), (1024, 8192), (4096, 8192)), (FULL, TF32)),
    "barlow_twins": (((2048, 8192), (256, 8192), (1024, 8192), (4096, 8192)), (FULL, TF32)),
}
TINY = {
    "info_nce": (16, 64, 16), "arcface": (16, 64, 16), "dino_loss": (8, 64, 16), "knn_topk": (16, 64, 16, 5),
    "curricularface": (16, 64, 16),
}  # fmt: skip


@contextlib.contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Tells torch how to multiply float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISIONS[precision][1])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
