"""The decoder of a masked autoencoder, and the fixed positions that it and the encoder add."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sincos_positions(
    grid: tuple[int, int],
    dim: int,
) -> Tensor:  # [P, dim] float32
    """Positions of patches as sines and cosines: the first half of the features is of the column, the other of the row.

    Raises:
        ValueError: dim is no multiple of 4.

    Reference: Vaswani et al. 2017, arXiv:1706.03762, section 3.5; He et al. 2021, arXiv:2111.06377, appendix A.1, in
    the order of the authors' code.
    """
    if dim % 4:
        raise ValueError(f"dim: positions as sines and cosines need a multiple of 4, got {dim}")
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    parts = [place.flatten()[:, None] * rates for place in (x, y)]
    return torch.cat([f(part) for part in parts for f in (torch.sin, torch.cos)], dim=1).float()


class MAEDecoder(nn.Module):
    """Transformer from the visible patches' features to the pixels of the hidden ones.

    The sequence is (class token and registers, visible patches, a mask token for each hidden patch), each patch with
    its position: attention does not mind the order, so nothing is put back into the image's.

    Args:
        in_features: F, of the encoder.
        grid: rows and columns of patches; P is their product.
        num_pixels: numbers to predict for a patch, C x height x width.
        dim: D, width of the blocks.
        depth: number of blocks.
        num_heads: of attention.

    Reference: He et al. 2021, arXiv:2111.06377, section 3 and appendix A.1 (initialisation too: xavier_uniform).
    """

    positions: Tensor

    def __init__(
        self, in_features: int, grid: tuple[int, int], num_pixels: int, *, dim: int, depth: int, num_heads: int
    ) -> None:
        super().__init__()
        from timm.layers.norm import LayerNorm
        from timm.models.vision_transformer import Block

        self.embed = nn.Linear(in_features, dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.register_buffer("positions", sincos_positions(grid, dim), persistent=False)  # [P, D]
        self.blocks = nn.Sequential(*(Block(dim, num_heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)))
        self.norm = LayerNorm(dim)  # timm's eps is 1e-6
        self.pixels = nn.Linear(dim, num_pixels)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        prefix: Tensor,  # [N, R, F] class token and registers
        visible: Tensor,  # [N, K, F]
        order: Tensor,  # [N, P] int64: the K visible patches, then the hidden ones
    ) -> Tensor:  # [N, P - K, num_pixels]
        """Pixels of the hidden patches, in their order."""
        num_hidden = order.shape[1] - visible.shape[1]
        x = self.embed(torch.cat((prefix, visible), dim=1))
        x = torch.cat((x, self.mask_token.to(x.dtype).expand(len(x), num_hidden, -1)), dim=1)
        positions = torch.cat((self.positions.new_zeros(len(x), prefix.shape[1], x.shape[2]), self.positions[order]), 1)
        x = self.blocks(x + positions)
        pixels: Tensor = self.pixels(self.norm(x[:, -num_hidden:]))
        return pixels


def patchify(
    images: Tensor,  # [N, C, H, W]
    size: tuple[int, int],  # of a patch
) -> Tensor:  # [N, P, height * width * C]
    """Each patch's pixels, row by row, the channels of a pixel side by side."""
    batch, channels, height, width = images.shape
    rows, columns = height // size[0], width // size[1]
    patches = images.reshape(batch, channels, rows, size[0], columns, size[1])
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def normalized_pixels(
    patches: Tensor,  # [N, P, pixels]
) -> Tensor:
    """Each patch less its mean, over its standard deviation.

    Reference: He et al. 2021, arXiv:2111.06377, section 3 ("Reconstruction target"); eps of the authors' code.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()
