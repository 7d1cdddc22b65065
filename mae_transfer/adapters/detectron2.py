"""The encoder as a backbone of detectron2: for projects there, and for `--engine detectron2`.

    from mae_transfer import load_backbone
    from mae_transfer.adapters.detectron2 import ViTBackbone

    model.backbone.bottom_up = L(ViTBackbone)(
        encoder=L(load_backbone)(name="mae_vit_b", img_size=1024, window_size=14, rel_pos=True, drop_path=0.1)
    )
    model.backbone.in_features = ViTBackbone.maps

The maps are those that the FPN of the MAE paper's pyramid starts from (`vit_fpn.ViTFPN`); detectron2's own FPN goes on
top. The contract is that of detectron2 `modeling/backbone/backbone.py`. This file and `tasks/coco/detectron2/engine.py`
are the only ones that need detectron2.
"""

from typing import TYPE_CHECKING

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from mae_transfer.adapters.vit_fpn import ViTFPN
from mae_transfer.errors import UserError

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class ViTBackbone(Backbone):
    """Normalised images (B, 3, H, W), H and W multiples of 32 -> maps (B, C, H/s, W/s) at strides s = 4, 8, 16, 32.

    Args:
        encoder: of `load_backbone`, with patch 16 and four taps.
        square_pad: side in pixels of the square that images are padded to where no FPN stands above, which has an
            argument of this name itself; 0 pads to a multiple of 32 only.

    Raises:
        UserError: an encoder with another patch or number of taps.
    """

    maps = ("scale2", "scale3", "scale4", "scale5")
    """Names of the outputs, by the base 2 logarithm of their strides, as detectron2's MViT has them."""

    def __init__(self, encoder: "Encoder", square_pad: int = 0) -> None:
        super().__init__()
        if encoder.patch_size != 16:
            raise UserError(
                f"detectron2's FPN has strides 4, 8, 16, 32, which need a patch of 16, not {encoder.patch_size}; "
                "take a backbone with patch 16, or --engine torchvision"
            )
        if len(encoder.taps) != len(self.maps):
            raise UserError(f"the encoder gives {len(encoder.taps)} feature maps, the pyramid needs 4: set 4 taps")
        self.encoder = encoder
        self.stages = ViTFPN(encoder.embed_dim).stages
        self.square_pad = square_pad

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        taps = self.encoder(images)
        return {name: stage(tap) for name, stage, tap in zip(self.maps, self.stages, taps, strict=True)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self.encoder.embed_dim, stride=2 ** (2 + i)) for i, name in enumerate(self.maps)
        }

    @property
    def size_divisibility(self) -> int:
        return 32

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"size_divisibility": self.size_divisibility, "square_size": self.square_pad}


class LastMapBackbone(Backbone):
    """Normalised images (B, 3, H, W), H and W multiples of 16 -> {"last_feat": the last map (B, C, H/16, W/16)}: what
    detectron2's `SimpleFeaturePyramid` takes as its `net`.

    Raises:
        UserError: an encoder with another patch, for which that pyramid has no names.
    """

    map = "last_feat"

    def __init__(self, encoder: "Encoder") -> None:
        super().__init__()
        if encoder.patch_size != 16:
            raise UserError(
                f"detectron2's pyramid has strides 4, 8, 16, 32, which need a patch of 16, not {encoder.patch_size}; "
                "take a backbone with patch 16, or --engine torchvision"
            )
        self.encoder = encoder

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {self.map: self.encoder(images)[-1]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {self.map: ShapeSpec(channels=self.encoder.embed_dim, stride=self.encoder.patch_size)}
