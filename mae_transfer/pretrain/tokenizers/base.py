"""The contract of tokenizers."""

import torch
from torch import Tensor, nn

from mae_transfer.errors import UserError


class Tokenizer(nn.Module):
    """uint8 images (B, C, H, W) -> token ids, int64 (B, h * w) in 0 .. vocab_size - 1, row by row.

    A token stands for `patch_size` x `patch_size` pixels of the tokenizer's own input. `view_size` gives the size of
    that input, which may differ from the encoder's: OpenAI's tokenizer has 8 pixels for an encoder's 16. `load.py`
    builds a tokenizer again from its `tensors` and `facts`. It is not trained with the encoder: no gradient, and
    float32 under autocast too.
    """

    kind: str
    vocab_size: int
    patch_size: int
    channels: int
    fits_any_patch = False
    """Whether a token may stand for a patch of the encoder that has another size."""

    def forward(self, images: Tensor) -> Tensor:
        h, w = images.shape[2] // self.patch_size, images.shape[3] // self.patch_size
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            ids = self.ids(images)
        assert ids.shape == (len(images), h * w)
        return ids

    def ids(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the tokenizer's file."""
        return self.state_dict()

    def facts(self) -> dict[str, int]:
        """Plain values beside the tensors."""
        return {}

    def view_size(self, image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
        """Height and width of the view to hand to this tokenizer for images of an encoder with this patch.

        Raises UserError if its tokens do not stand for the encoder's patches.
        """
        if patch_size != self.patch_size and not self.fits_any_patch:
            raise UserError(
                f"the tokenizer {self.kind} has patches of {self.patch_size} pixels and the encoder of {patch_size}, "
                "so their grids differ; use a tokenizer made for this patch size"
            )
        height, width = (side // patch_size * self.patch_size for side in image_size)
        return height, width
