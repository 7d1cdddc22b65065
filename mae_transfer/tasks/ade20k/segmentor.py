"""What the segmentors of all protocols share: how a batch becomes losses, and an image its classes.

The loss is mmsegmentation's default (`avg_non_ignore=False`): averaged over ALL pixels of the crop, also ignored and
padded ones. That makes the loss a mean over images, the same however a batch is split. Logits are upsampled in float32,
which autocast there leaves in half precision.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_transfer.adapters.square_input import pad_to_square, square_batch
from mae_transfer.backbones.grid import grid_of
from mae_transfer.tasks.ade20k.inference import Predictor
from mae_transfer.tasks.ade20k.transforms import IGNORE

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class Segmentor(nn.Module):
    """A model of K classes over a batch of uint8 images; a subclass gives `patch_logits`.

    Args:
        encoder: its `mean` and `std` are in 0..1 units.
        image_size: side in pixels of the training crop and the evaluation window.
        predictor: how whole images are predicted in evaluation.
    """

    def __init__(self, encoder: "Encoder", image_size: int, predictor: Predictor) -> None:
        super().__init__()
        self.encoder = encoder
        self.image_size = image_size
        self.predictor = predictor

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor] | list[Tensor]:
        """Training: the `losses`. Evaluation: per image the classes 0 .. K-1 as int16 (H, W) at its original size.

        Args:
            batch: in training `images` uint8 (3, h, w) RGB, `labels` int16 (h, w) and `file_names`; in evaluation
                `views`, per image a uint8 (3, h, w) for each of `eval.ratios`, and `sizes` (height, width).

        Raises:
            UserError: a crop exceeds `image_size`.
        """
        if not self.training:
            views = [[self.encoder.normalise(view) for view in image] for image in batch["views"]]
            return self.predictor(self.logits, views, batch["sizes"])
        names = batch["file_names"]
        images = square_batch(self.encoder, batch["images"], names, self.image_size)
        labels = [
            pad_to_square(label, self.image_size, IGNORE, name)
            for label, name in zip(batch["labels"], names, strict=True)
        ]
        return self.losses(images, torch.stack(labels).to(images.device, torch.int64))

    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, S, S), targets int64 (B, S, S) -> losses, each a mean over all pixels."""
        return {"loss_seg": pixel_loss(self.patch_logits(images), targets)}

    def patch_logits(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, K, h, w) at the resolution of the head."""
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> float32 (B, K, H, W)."""
        logits = self.patch_logits(images)
        return F.interpolate(logits.float(), size=images.shape[2:], mode="bilinear", align_corners=False)


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K, h, w) upsampled to labels int64 (B, H, W), averaged over all pixels.

    Ignored pixels add nothing to the sum but count in the number, so a crop without labels gives 0 and not NaN.
    """
    logits = F.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / labels.numel()


def check_crop(side: int, patch: int, backbone: str, least: int = 2) -> None:
    """UserError for a crop that is not cut into whole patches, at least `least` each way."""
    grid_of(side, patch, backbone, what="data.image_size=", least=least)


def init_classifier(layer: Any) -> None:
    """A convolution's first weights as of mmsegmentation's `init_weights()`: normal with 0.01, bias 0."""
    nn.init.normal_(layer.weight, mean=0.0, std=0.01)
    nn.init.zeros_(layer.bias)
