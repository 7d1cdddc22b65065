"""The patch tokens of an encoder as maps.

An image whose sides are no multiples of the patch gets a frame of zeros, as in DINOv2 (`CenterPadding` of
notebooks/semantic_segmentation.ipynb).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_transfer.config.layers import Layers, find_blocks

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


def padded_size(height: int, width: int, patch: int) -> tuple[int, int]:
    """The next multiples of the patch."""
    return -(-height // patch) * patch, -(-width // patch) * patch


class PatchTokens:
    """The frozen encoder as a function: normalised images (B, 3, H, W) -> a map float32 (B, C, h, w) for each block.

    No module, so that the encoder is registered once, as the attribute `encoder` of the model. It runs without
    autograd.
    """

    def __init__(self, encoder: "Encoder", layers: Layers) -> None:
        self.encoder = encoder
        self.blocks = find_blocks(layers, encoder.depth, encoder.name)
        encoder.freeze(0)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        return patch_maps(self.encoder, images, self.blocks)


def patch_maps(encoder: "Encoder", images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
    """Normalised images (B, 3, H, W) -> the normed patch tokens as a map float32 (B, C, h, w) for each block."""
    height, width = images.shape[2:]
    rows, columns = padded_size(height, width, encoder.patch_size)
    left, top = (columns - width) // 2, (rows - height) // 2
    images = F.pad(images, (left, columns - width - left, top, rows - height - top))
    grid = encoder.grid_of(rows, columns)
    norm = encoder.norm or nn.Identity()
    tokens = [norm(x)[:, encoder.prefix :].float() for x in encoder.tokens(images, blocks)]
    return [x.unflatten(1, grid).permute(0, 3, 1, 2) for x in tokens]
