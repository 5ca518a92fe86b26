"""clip_loss, siglip_loss and info_nce among keys, forward and backward, beside open_clip and the plain forms.

    python -m benchmarks.ops.bench_two_towers --threads 2

Times, memory and floor: `measure.py`; the gradients are left on the inputs, which exist before the count of memory
begins. The arithmetic is 8 N^2 D for a normaliser of rows or columns, 6 N^2 D for siglip_loss.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.measure import Judge, Op, Step, against, run
from ssl_fast import clip_loss, info_nce, siglip_loss

SCALE, BIAS = math.log(1 / 0.07), -10.0  # as training begins; the scale is learned as its logarithm
FLOP = {"clip_loss": 8, "siglip_loss": 6, "info_nce among keys": 8}  # x N^2 D


def towers(rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Unit embeddings that agree as those of a half-trained model do (cosine about 0.7)."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(rows, dim, generator=generator), dim=1)
    noise = F.normalize(torch.randn(rows, dim, generator=generator), dim=1)
    return image, F.normalize(0.7 * image + 0.7 * noise, dim=1)


def differentiate(loss: Callable[..., Tensor], image: Tensor, text: Tensor) -> Step:
    """`loss(image, text, scale, bias)` forward and backward; the inputs are the same tensors every time."""
    leaves = [t.detach().requires_grad_() for t in (image, text)]
    dtype = torch.promote_types(image.dtype, torch.float32)
    leaves += [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (SCALE, BIAS)]

    def step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        loss(leaves[0], leaves[1], leaves[2].exp(), leaves[3]).backward()
        assert leaves[0].grad is not None
        return leaves[0].grad

    return step


def ours(op: str, impl: str) -> Callable[..., Tensor]:
    if op == "clip_loss":
        return lambda image, text, scale, bias: clip_loss(image, text, scale, impl=impl)
    if op == "siglip_loss":
        return lambda image, text, scale, bias: siglip_loss(image, text, scale, bias, impl=impl)
    return lambda image, text, scale, bias: info_nce(image, text, temperature=1 / scale, impl=impl)


def cross_entropy(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """MoCo v3's own form (Chen et al. 2021, Algorithm 1): logits [N, N], then cross-entropy with label i."""
    return F.cross_entropy(image @ text.T * scale, torch.arange(len(image)))


def peer(op: str) -> tuple[str, Callable[..., Tensor]]:
    if op == "info_nce among keys":
        return "plain cross-entropy", cross_entropy
    from open_clip.loss import ClipLoss, SigLipLoss

    if op == "siglip_loss":
        return "open_clip SigLipLoss", SigLipLoss()
    loss = ClipLoss()
    return "open_clip ClipLoss", lambda image, text, scale, bias: loss(image, text, scale)


def contenders(op: str, rows: int, dim: int) -> dict[str, Step]:
    image, text = towers(rows, dim)
    name, theirs = peer(op)
    return {
        "ssl_fast cpp": differentiate(ours(op, "cpp"), image, text),
        "ssl_fast cpp bf16 input": differentiate(ours(op, "cpp"), image.bfloat16(), text.bfloat16()),
        "ssl_fast reference": differentiate(ours(op, "reference"), image, text),
        name: differentiate(theirs, image, text),
    }


def tangent(gradient: Tensor, image: Tensor) -> Tensor:
    """The part across the unit rows: the peers leave the normalisation, and its derivative, to the caller."""
    gradient = gradient.double()
    return gradient - image * (gradient * image).sum(1, keepdim=True)


def judge(op: str, rows: int, dim: int) -> Judge:
    image = towers(rows, dim)[0].double()
    error = against(differentiate(ours(op, "reference"), *(t.double() for t in towers(rows, dim)))())
    return lambda name, found: error(name, tangent(found, image))


def table(op: str, factor: int) -> Op:
    return Op(
        contenders=functools.partial(contenders, op),
        sizes=[(512, 512), (4096, 512), (8192, 512)],
        small=(512, 512),
        judge=functools.partial(judge, op),
        flop=lambda rows, dim: factor * rows**2 * dim,
    )


CONTENDERS = {op: table(op, factor) for op, factor in FLOP.items()}


if __name__ == "__main__":
    run(__doc__, "ops_two_towers_cpu", CONTENDERS, ("open-clip-torch",), error="gradient_error")
