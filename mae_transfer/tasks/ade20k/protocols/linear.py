"""Linear segmentation of a frozen encoder, as in DINOv2 and DINOv3.

Patch tokens after the final norm -> channel dropout -> batch norm over all ranks, with affine parameters -> 1x1
convolution -> bilinear upsampling. DINOv2's `BNHead` (dinov2/eval/segmentation/models/decode_heads/linear_head.py) and
DINOv3's `LinearHead` (dinov3/eval/segmentation/models/heads/linear_head.py) are this head; the recipes differ. The head
computes in float32 in any precision. The encoder runs without autograd, so that a step keeps none of its activations.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from mae_transfer.adapters.norm import BatchNorm
from mae_transfer.config.layers import Layers
from mae_transfer.tasks.ade20k.config import CropsConfig
from mae_transfer.tasks.ade20k.inference import Predictor
from mae_transfer.tasks.ade20k.patch_tokens import PatchTokens, padded_size
from mae_transfer.tasks.ade20k.protocols.config import LinearConfig
from mae_transfer.tasks.ade20k.protocols.protocol import TRAINING, Protocol
from mae_transfer.tasks.ade20k.segmentor import Segmentor, init_classifier

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class LinearSegmentor(Segmentor):
    """Frozen encoder, batch norm and a linear classifier of each patch."""

    def __init__(
        self, encoder: "Encoder", num_classes: int, config: CropsConfig, layers: Layers, dropout: float = 0.0
    ) -> None:
        side = config.data.image_size
        super().__init__(encoder, side, Predictor(num_classes, side, encoder.patch_size, config.eval))
        self.tokens = PatchTokens(encoder, layers)
        channels = encoder.embed_dim * len(self.tokens.blocks)
        self.dropout = nn.Dropout2d(dropout)
        self.norm = BatchNorm(channels)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        init_classifier(self.classifier)

    @override
    def patch_logits(self, images: Tensor) -> Tensor:
        maps = torch.cat(self.tokens(images), dim=1)
        with torch.autocast(maps.device.type, enabled=False):
            logits: Tensor = self.classifier(self.norm(self.dropout(maps)))
        return logits


class Linear(Protocol[LinearConfig, LinearSegmentor]):
    reads: ClassVar[tuple[str, ...]] = TRAINING

    @override
    def encoder_options(self, patch_size: int) -> dict[str, object]:
        side = self.config.data.image_size
        return {"img_size": padded_size(side, side, patch_size), "final_norm": self.config.probe.final_norm}

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> LinearSegmentor:
        probe = self.config.probe
        return LinearSegmentor(encoder, num_classes, self.config, probe.layers, probe.dropout)
