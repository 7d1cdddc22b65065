"""Swin off the size that it was trained at, in the arithmetic of its authors' dense code.

At the native size timm's model is the authors' classifier, and it stays as it is. At other sizes timm shifts a map
before it pads it, and does not shift where the native map is a single window. The dense code of Swin's authors, kept by
mmsegmentation and mmdetection (`ShiftWindowMSA` of their `models/backbones/swin.py`), pads first and always shifts.
"""

from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional

RULE = "before_shift"
"""`Spec.window_padding` of the models whose blocks are these."""


class SwinBlock(SwinTransformerBlock):
    """timm's block of a model that takes any size; only the shift and the padding of maps (B, H, W, C) differ."""

    def _attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if (height, width) == self.input_resolution:
            _, self.shift_size = self._calc_window_shift(self.window_size, self.target_shift_size)
            return super()._attn(x)
        self.shift_size = self.target_shift_size
        down, right = -height % self.window_size[0], -width % self.window_size[1]
        padded = functional.pad(x, (0, 0, 0, right, 0, down))
        return super()._attn(padded)[:, :height, :width]


def pad_before_shift(model: nn.Module) -> None:
    """Make the blocks of timm's SwinTransformer, built with `dynamic_img_size`, those of this module."""
    for block in model.modules():
        if type(block) is SwinTransformerBlock:
            block.__class__ = SwinBlock
