"""The encoder as a backbone of mmsegmentation, for configurations there; importing this registers it.

    custom_imports = dict(imports=["mae_transfer.adapters.mmseg"])
    model = dict(backbone=dict(type="MAETransferViT", name="mae_vit_b", img_size=512, rel_pos="per_block"), ...)

`docs/examples/mmseg_upernet.py` is a whole model. The contract is that of mmsegmentation's own backbones: normalised
images in, a tuple of maps out, for a neck such as Feature2Pyramid.
"""

from typing import Any

from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor

from mae_transfer.backbones.load import load_backbone


@MODELS.register_module()
class MAETransferViT(BaseModule):
    """Normalised images (B, 3, H, W), H and W multiples of the patch p -> maps (B, C, H/p, W/p), one per tap.

    Args:
        name, options: of `load_backbone`, which loads the weights when the model is built: `checkpoint`, `img_size`,
            `taps` (default: the last block of each quarter), `rel_pos`, `drop_path` and so on.

    Raises:
        UserError: as `load_backbone`.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.encoder = load_backbone(name, **options)

    def init_weights(self) -> None:
        """Does nothing: the weights are there, and mmengine must not replace them."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(images))
