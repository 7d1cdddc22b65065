"""Images as the dense tasks' encoders take them: normalised, then padded to one square."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_transfer.errors import UserError

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


def square_batch(encoder: "Encoder", images: Sequence[Tensor], names: Sequence[str], side: int) -> Tensor:
    """uint8 (3, h, w) each -> normalised float32 (B, 3, side, side) on the encoder's device, in the top left corner of
    zeros. Names are for errors.

    Raises UserError if an image exceeds the square.
    """
    return torch.stack(
        [pad_to_square(encoder.normalise(x), side, 0.0, name) for x, name in zip(images, names, strict=True)]
    )


def pad_to_square(image: Tensor, side: int, value: float, name: str) -> Tensor:
    """(..., h, w) -> (..., side, side), padded right and below. Raises UserError if it exceeds the square."""
    check_fits(image, side, name)
    height, width = image.shape[-2:]
    return F.pad(image, (0, side - width, 0, side - height), value=value)


def check_fits(image: Tensor, side: int, name: str) -> None:
    """Raises UserError if the image (..., h, w) of this name exceeds the square."""
    height, width = image.shape[-2:]
    if max(height, width) > side:
        raise UserError(
            f"image {name} is {width}x{height} when it reaches the model, larger than its square of {side}: "
            "resize to data.image_size or raise it"
        )
