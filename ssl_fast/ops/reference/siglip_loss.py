"""SigLIP's loss in plain torch, with the interface and the numerics of the fused kernels, a block of rows at a time.

Letters: M pairs of all ranks, R of them wanted, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.ops.reference.towers import blocks, through_norm, unit


def unavailable(*tensors: Tensor) -> str | None:
    """Plain torch is always usable."""
    return None


def forward(
    image: Tensor,  # [M, D]
    text: Tensor,  # [M, D]
    coef: Tensor | None,  # [M]
    rows: tuple[int, int],
    scale: float | Tensor,  # []
    bias: float | Tensor,  # []
    normalize: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Loss [R] of the images begin..end and, given `coef`, the gradients of sum_i coef_i loss_i over all images i.

    dimage, dtext [R, D] of the pairs begin..end, and these images' shares [R] of d/dscale and d/dbias.
    """
    mine = slice(*rows)
    with torch.autocast(image.device.type, enabled=False):
        (u, u_norm), (v, v_norm) = unit(image, normalize), unit(text, normalize)
        pieces = blocks(rows, len(v), u.device)
        loss = torch.cat([F.softplus(_signed(u, v, i, scale, bias), threshold=60).sum(1) for i in pieces])
        if coef is None:
            return loss, None, None, None, None
        parts = [_gradient_block(u, v, coef, i, scale, bias) for i in pieces]
        du, dv, dbias = (torch.cat(part) for part in zip(*parts, strict=True))
        dscale = (u[mine] * du).sum(1)
        du, dv = du * scale, dv * scale
    if normalize:
        du, dv = through_norm(du, u[mine], u_norm[mine]), through_norm(dv, v[mine], v_norm[mine])
    return loss, du, dv, dscale, dbias


def _gradient_block(
    u: Tensor,  # [M, D]
    v: Tensor,  # [M, D]
    coef: Tensor,  # [M]
    i: Tensor,  # [I]
    scale: float | Tensor,
    bias: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the pairs `i`: du / scale and dv / scale [I, D], and their images' share of d/dbias [I]."""
    of_image = _slopes(u, v, i, scale, bias).mul_(coef[i, None])
    of_text = _slopes(v, u, i, scale, bias).mul_(coef)
    return of_image @ v, of_text @ u, of_image.sum(1)


def _signed(a: Tensor, b: Tensor, i: Tensor, scale: float | Tensor, bias: float | Tensor) -> Tensor:
    """-y_ij (s_ij + bias) of the rows `i` of a against all of b, [I, M]: softplus of it is the pair's loss."""
    s = a[i] @ b.T * scale + bias
    return s.scatter_(1, i[:, None], -s.gather(1, i[:, None]))


def _slopes(a: Tensor, b: Tensor, i: Tensor, scale: float | Tensor, bias: float | Tensor) -> Tensor:
    """The derivative of each pair's loss with respect to its logit, [I, M]: -y_ij sigmoid(-y_ij (s_ij + bias))."""
    p = _signed(a, b, i, scale, bias).sigmoid_()
    return p.scatter_(1, i[:, None], -p.gather(1, i[:, None]))
