"""Crop, antialiased resize and Gaussian blur as small matrix products: one matrix per sample and axis.

For same-size images in memory this replaces thousands of calls per batch by two.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_PRECISION = 22  # bits behind the point of a rounded weight


def crop_matrix(
    begin: Tensor,  # [N] first row of the crop, pixels
    length: Tensor,  # [N] rows of the crop, pixels
    flip: Tensor,  # [N] reverse the output (0 or 1)
    extent: int,  # rows of the image
    size: int,  # rows of the output
    interpolation: str,
) -> Tensor:  # [N, size, extent] float32
    """The matrix that crops one axis and resizes it as torch's `interpolate(antialias=True)` does for uint8 images.

    Row i holds the filter around the centre (i + 1/2) * length / size, widened when the crop is shrunk, cut at the
    borders of the crop, normalised and rounded to a grid that puts the matrix' largest weight into 16 bits.
    """
    begin, length, flip = (numbers.double().view(-1, 1, 1) for numbers in (begin, length, flip))
    scale = length / size
    output = torch.arange(size, dtype=torch.float64).view(1, -1, 1)
    output = output + (size - 1 - 2.0 * output) * flip
    pixel = torch.arange(extent, dtype=torch.float64).view(1, 1, -1) - begin
    distance = (pixel + 0.5 - (output + 0.5) * scale).abs_().div_(scale.clamp(min=1.0))
    weight = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    weight.mul_((pixel >= 0) & (pixel < length))
    return _rounded(weight.div_(weight.sum(dim=2, keepdim=True))).float()


def _rounded(
    weight: Tensor,  # [N, size, extent]
) -> Tensor:
    mantissa, exponent = torch.frexp(weight.amax(dim=(1, 2), keepdim=True))
    precision = (15 - exponent - (mantissa * 2**15 >= 2**15 - 0.5).int()).clamp_(max=_MAX_PRECISION)
    grid = torch.exp2(precision.double())
    return weight.mul_(grid).add_(torch.where(weight < 0, -0.5, 0.5)).trunc_().div_(grid)


def _triangle(
    distance: Tensor,  # any shape, >= 0
) -> Tensor:
    return distance.neg_().add_(1.0).clamp_(min=0.0)


def _cubic(
    distance: Tensor,  # any shape, >= 0
) -> Tensor:
    """Keys' cubic with a = -1/2, what torch and Pillow use when antialiasing."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, 0.0))


def crop_resize(
    images: Tensor,  # [N, H, W, C] uint8
    box: Tensor,  # [N, 4] top, left, height, width
    flip: Tensor,  # [N] 0 or 1
    size: int,
    interpolation: str,
) -> Tensor:  # [N, C, size, size] float32 in [0, 255], whole numbers
    """Cropped, resized, flipped images, to the bit as torchvision resizes uint8: columns, whole levels, then rows."""
    _, height, width, _ = images.shape
    top, left, rows, columns = box.unbind(1)
    vertical = crop_matrix(top, rows, torch.zeros_like(flip), height, size, interpolation)
    horizontal = crop_matrix(left, columns, flip, width, size, interpolation)
    planes = images.permute(0, 3, 1, 2).contiguous().float()
    return _whole(torch.matmul(vertical[:, None], _whole(torch.matmul(planes, horizontal.mT[:, None]))))


def _whole(
    levels: Tensor,  # any shape
) -> Tensor:
    return levels.add_(0.5).floor_().clamp_(0, 255)


def blur_kernel_size(size: int) -> int:
    """A tenth of the view's side, odd, at least 3 (SimCLR: 23 at 224 px)."""
    return max(3, size // 10 | 1)


def blur_matrix(
    sigma: Tensor,  # [N] pixels
    size: int,
) -> Tensor:  # [N, size, size]
    """The matrix that blurs one axis with a truncated Gaussian, the border reflected."""
    radius = min(blur_kernel_size(size) // 2, size - 1)
    device = sigma.device
    offset, row = torch.arange(-radius, radius + 1, device=device), torch.arange(size, device=device)
    kernel = torch.softmax(-0.5 * (offset / sigma[:, None]) ** 2, dim=1)  # [N, K]
    source = (row[:, None] + offset).abs()  # [size, K]
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    matrix = torch.zeros(len(sigma), size, size, device=device)
    for tap in range(len(offset)):  # tap by tap: a row may meet the same pixel twice at the border
        matrix[:, row, source[:, tap]] += kernel[:, tap, None]
    return matrix


def blur_(
    x: Tensor,  # [N, C, S, S]
    sigma: Tensor,  # [N] pixels
) -> None:
    """Gaussian blur, sigma per sample, as torchvision's gaussian_blur with kernel `blur_kernel_size(S)`."""
    matrix = blur_matrix(sigma, x.shape[-1])[:, None]
    x.copy_(torch.matmul(torch.matmul(matrix, x), matrix.mT))
