"""Rotary positions (RoPE): each block rotates queries and keys by the places of their tokens, as timm's Eva does.

The rotations are made for the grid at hand in every forward, by timm's own modules (`vit.rope`): axial (EVA-02,
Perception Encoder, rope-vit), axial with coordinates of -1 to 1 (DINOv3), or with learned frequencies of each block
and head (rope-vit's mixed). Prefix tokens are not rotated.

Attention in windows has two readings, `backbone.window_rope`:

- `window`: rotations made for the window as an image of its own: EVA-02's detector (baaivision/EVA,
  EVA-02/det/detectron2/modeling/backbone/vit.py, `rope_win` of `ft_seq_len=window_size`), which scales coordinates to
  the grid of the pre-training; DINOv3's to -1 to 1.
- `image`: those of the image's own grid. All windows have the same, since only differences of places count.

Both are the same for rope-vit, whose coordinates are plain token counts.
"""

from typing import Any

from torch import Tensor

from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.grid import Grid, text
from mae_transfer.backbones.positions.position import Host, OfForward, Position
from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError


class Rotary(Position):
    """The frequencies are timm's buffers, or its one parameter `vit.rope.freqs` for all blocks."""

    option = None

    @classmethod
    def in_weights(cls, spec: Spec) -> bool:
        return spec.rotary

    def __init__(self, encoder: Host) -> None:
        super().__init__(encoder)
        self.window_rope = encoder.window_rope
        self.per_block = bool(encoder.vit.rope_mixed)
        self.number = {block.attn: i for i, block in enumerate(encoder.vit.blocks)}
        for attn in self.number:
            attn.num_prefix_tokens = encoder.prefix

    def fit(self, encoder: Host, report: LoadReport) -> None:
        super().fit(encoder, report)
        made = f"in windows for the {self.window_rope}'s" if self.window_size else "in every block for the image's"
        report.new["rotary positions"] = f"made {made} grid; no tables of relative positions beside them"

    def of_forward(self, encoder: Host, x: Tensor, grid: Grid) -> OfForward:
        """The sines and cosines (h * w, 2 D) of a window's and of the image's grid; (blocks, heads, h * w, 2 D) where
        each block has its own. Raises UserError for an image smaller than a window with `window_rope=image`."""
        rope, side = encoder.vit.rope, self.window_size
        of_image = rope.get_embed(shape=list(grid))
        if not side:
            return None, of_image
        if self.window_rope == "window":
            return rope.get_embed(shape=[side, side]), of_image
        if min(grid) < side:
            raise UserError(
                f"backbone.window_rope=image: an image of {text(grid)} tokens has no window of {side}; use larger "
                "images, backbone.window_size=0 or window_rope=window."
            )
        return of_image.unflatten(-2, grid)[..., :side, :side, :].flatten(-3, -2), of_image

    def of_kept(self, encoder: Host, keep: Tensor) -> Tensor:
        """The sines and cosines of each image's own patches, (B, 1, n, 2 D) for all heads; (blocks, B, heads, n, 2 D)
        where each block has its own. As timm's Eva has them with patch dropout."""
        rope: Tensor = encoder.vit.rope.get_embed(shape=list(encoder.native_grid))
        return rope[:, :, keep].transpose(1, 2) if self.per_block else rope[keep][:, None]

    def attend(self, attn: Any, x: Tensor, grid: Grid, windowed: bool, shared: Tensor | None) -> Tensor:
        assert shared is not None
        rope = shared[self.number[attn]] if self.per_block else shared
        out: Tensor = attn(x, rope=rope)
        return out
