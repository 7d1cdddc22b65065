"""Images as the dense tasks' encoders take them: normalised, then padded to one square."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_transfer.errors import UserError

if TYPE_CHECKING:
    from mae_transfer.backbones.vit import ViTEncoder


class SquareInput(nn.Module):
    """uint8 RGB images of any sizes up to `side` pixels -> the encoder's input, on the device of the model.

    Normalised in 0..255 units, as detectron2 and mmsegmentation do it, so that the input is theirs to the last bit.

    Args:
        encoder: its `mean` and `std` are in 0..1 units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: "ViTEncoder", side: int) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("mean", torch.tensor([255 * v for v in encoder.mean]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([255 * v for v in encoder.std]).view(3, 1, 1), persistent=False)

    def forward(self, images: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """uint8 (3, h, w) each -> float32 (B, 3, side, side), in the top left corner of zeros; names are for errors.

        Raises UserError if an image exceeds the square.
        """
        return torch.stack([self.pad(self.normalise(i), 0.0, name) for i, name in zip(images, names, strict=True)])

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 (3, h, w) -> float32."""
        return (image.to(self.mean, non_blocking=True) - self.mean) / self.std

    def pad(self, image: Tensor, value: float, name: str) -> Tensor:
        """(..., h, w) -> (..., side, side), right and below."""
        check_fits(image, self.side, name)
        height, width = image.shape[-2:]
        return F.pad(image, (0, self.side - width, 0, self.side - height), value=value)


def check_fits(image: Tensor, side: int, name: str) -> None:
    """Raises UserError if the image (..., h, w) of this name exceeds the square."""
    height, width = image.shape[-2:]
    if max(height, width) > side:
        raise UserError(
            f"image {name} is {width}x{height} when it reaches the model, larger than its square of {side}: "
            "resize to data.image_size or raise it"
        )
