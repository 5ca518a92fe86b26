r"""What a margin makes of the cosine c = cos(theta) between a sample and its own class: phi(c), and its derivative.

    combined   phi = cos(m1 theta + m2) - m3    (arcface: m1 = 1, m3 = 0; cosface: m1 = 1, m2 = 0)
    per row    phi = cos(clip(theta + m2_i)) - m3_i, the angle clipped to [0.001, pi - 0.001] (adaface)

With m1 = 1, cos(theta + m) = c cos m - sqrt(1 - c^2) sin m: no arccosine, whose derivative loses its digits near c = 1.

References: Deng et al. 2019, "ArcFace", arXiv:1801.07698, Eq. 4; Kim et al. 2022, "AdaFace", arXiv:2204.00964,
Eq. 12-14.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LEAST_ANGLE = 1e-3


class Margin(NamedTuple):
    """A margin, the same for all rows.

    Attributes:
        m1: factor of the angle.
        m2: added to the angle, radians.
        m3: taken from the cosine.
        monotone: where theta + m2 > pi, phi = c - m2 sin(m2) instead of the cosine, which would rise again.
        exact: False gives phi the derivative 1 (straight through), as implementations have it that replace the
            target's logit under no_grad.
    """

    m1: float = 1.0
    m2: float = 0.0
    m3: float = 0.0
    monotone: bool = False
    exact: bool = True


def margined(
    cosine: Tensor,  # [N]
    margin: Margin,
    row_margins: Tensor | None = None,  # [2, N] m2 and m3 of each row, instead of the margin's own
) -> tuple[Tensor, Tensor]:
    """phi and its derivative, each [N]; phi itself is differentiable, with that derivative.

    The derivative of the angle grows without bound towards |c| = 1: beyond 1 - 1e-6 (1 - 1e-12 in float64) it stays
    what it is there. The value does not: at c = 1 the angle is 0.
    """
    near = _held(cosine, 1 - (1e-12 if cosine.dtype == torch.float64 else 1e-6))
    c, near_sine = _held(cosine, 1), (1 - near * near).sqrt()
    sine = _moved(near_sine, (1 - c * c).sqrt())
    if row_margins is not None:
        phi, slope = _per_row(c, sine, near / near_sine, row_margins.to(c.dtype))
    elif margin.m1 != 1:
        angle = margin.m1 * _moved(near.acos(), c.acos()) + margin.m2
        phi, slope = angle.cos() - margin.m3, margin.m1 * angle.sin() / near_sine
    else:
        along, across = math.cos(margin.m2), math.sin(margin.m2)
        phi, slope = c * along - sine * across - margin.m3, along + near / near_sine * across
        if margin.monotone:
            beyond = c < -along
            phi, slope = torch.where(beyond, c - margin.m2 * across, phi), torch.where(beyond, 1, slope)
    if margin.exact:
        return phi, slope
    return _moved(cosine, phi), torch.ones_like(slope)


def _moved(x: Tensor, to: Tensor) -> Tensor:
    """The value of `to` with the derivative of `x`."""
    return x + (to - x).detach()


def _held(x: Tensor, limit: float) -> Tensor:
    """x clamped to [-limit, limit], with the derivative 1 everywhere."""
    return _moved(x, x.detach().clamp(-limit, limit))


def _per_row(
    c: Tensor,  # [N]
    sine: Tensor,  # [N]
    cotangent: Tensor,  # [N] c / sine, held near |c| = 1
    row_margins: Tensor,  # [2, N]
) -> tuple[Tensor, Tensor]:
    m2, m3 = row_margins
    along, across = m2.cos(), m2.sin()
    phi, slope = c * along - sine * across, along + cotangent * across
    # theta + m2 < least and theta + m2 > pi - least, asked of the cosine (only one can hold: |m2| < pi).
    below = (m2 < _LEAST_ANGLE) & (c > (_LEAST_ANGLE - m2).cos())
    above = (m2 > -_LEAST_ANGLE) & (c < -(_LEAST_ANGLE + m2).cos())
    end = math.cos(_LEAST_ANGLE)
    phi = torch.where(below, end, torch.where(above, -end, phi))
    return phi - m3, torch.where(below | above, 0, slope)
