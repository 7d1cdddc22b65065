"""UperNet on a ViT encoder, as BEiT and the MAE paper transfer to ADE20K: mmsegmentation's own heads as plain modules.

`UPerHead` and `FCNHead` are those of the PyPI releases onedl-mmsegmentation, onedl-mmcv and onedl-mmengine; none of
mmsegmentation's runner, registry scopes or data containers is used. Settings of the heads are those of its
`configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py` (stride and schedule are not: `configs/ade20k/`),
initialisation that of its `init_weights()`, and the loss its default (`avg_non_ignore=False`): averaged over ALL pixels
of the crop, also ignored and padded ones. That makes the loss a mean over images, the same however a batch is split.
Logits are upsampled in float32, which autocast there leaves in half precision.
"""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from mae_transfer.adapters.norm import BatchNorm
from mae_transfer.adapters.square_input import pad_to_square, square_batch
from mae_transfer.adapters.vit_pyramid import ViTPyramid
from mae_transfer.backbones.grid import grid_of
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.config import Ade20kConfig
from mae_transfer.tasks.ade20k.inference import Predictor
from mae_transfer.tasks.ade20k.transforms import IGNORE

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

AUX_TAP = 2
"""The auxiliary head reads the third map of the pyramid (`in_index=2`)."""


def import_heads() -> tuple[type[nn.Module], type[nn.Module]]:
    """mmsegmentation's UPerHead and FCNHead; UserError if they are not there."""
    with warnings.catch_warnings():
        # mmcv without compiled operators says so when its transformer file is imported; the heads need none of them
        warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")
        try:
            from mmseg.models.decode_heads import FCNHead, UPerHead
        except ImportError as error:
            raise UserError(
                f"mmsegmentation's heads cannot be imported ({error}); pip install onedl-mmsegmentation onedl-mmcv "
                "onedl-mmengine, and uninstall mmsegmentation, mmcv and mmengine, which have the same module names"
            ) from error
    return UPerHead, FCNHead


class UperNet(nn.Module):
    """Segmentor over a batch of uint8 images.

    Args:
        encoder: gives four taps (B, C, H/p, W/p), and its `mean` and `std` in 0..1 units.
        pyramid: taps to four maps.
        decode_head, auxiliary_head: maps to logits (B, K, h, w); the auxiliary one is for training only.
        aux_weight: of the auxiliary loss.
        image_size: side in pixels of the training crop and the evaluation window, a multiple of the patch.
        predictor: how whole images are predicted in evaluation.
    """

    def __init__(
        self,
        encoder: "Encoder",
        pyramid: ViTPyramid,
        decode_head: nn.Module,
        auxiliary_head: nn.Module,
        aux_weight: float,
        image_size: int,
        predictor: Predictor,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pyramid = pyramid
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head
        self.aux_weight = aux_weight
        self.image_size = image_size
        self.predictor = predictor

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor] | list[Tensor]:
        """Training: `loss_seg` and `loss_aux` (weighted), means over all pixels of the padded crops.

        Evaluation: per image the classes 0 .. K-1 as int16 (H, W) at its original size.

        Args:
            batch: in training `images` uint8 (3, h, w) RGB, `labels` int16 (h, w) and `file_names`; in evaluation
                `views`, per image a uint8 (3, h, w) for each of `eval.ratios`, and `sizes` (height, width).

        Raises:
            UserError: one image is all there is for batch norm, or a crop exceeds `image_size`.
        """
        if not self.training:
            views = [[self.encoder.normalise(view) for view in image] for image in batch["views"]]
            return self.predictor(self.logits, views, batch["sizes"])
        check_norm_batch(len(batch["images"]))
        names = batch["file_names"]
        images = square_batch(self.encoder, batch["images"], names, self.image_size)
        labels = [
            pad_to_square(label, self.image_size, IGNORE, name)
            for label, name in zip(batch["labels"], names, strict=True)
        ]
        targets = torch.stack(labels).to(images.device, torch.int64)
        maps = self.pyramid(self.encoder(images))
        return {
            "loss_seg": pixel_loss(self.decode_head(maps), targets),
            "loss_aux": self.aux_weight * pixel_loss(self.auxiliary_head(maps), targets),
        }

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> float32 (B, K, H, W); sides multiples of the patch, at least 2."""
        logits = self.decode_head(self.pyramid(self.encoder(images)))
        return F.interpolate(logits.float(), size=images.shape[2:], mode="bilinear", align_corners=False)


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K, h, w) upsampled to labels int64 (B, H, W), averaged over all pixels.

    Ignored pixels add nothing to the sum but count in the number, so a crop without labels gives 0 and not NaN.
    """
    logits = F.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / labels.numel()


def check_norm_batch(images: int) -> None:
    """UserError for a forward pass whose images on all ranks are one: pooled to 1x1 it has no variance."""
    ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if images * ranks < 2:
        raise UserError(
            "UperNet's batch norm needs at least 2 images in each forward pass over all devices, and has 1: set "
            "train.micro_batch to 2 or more, so that it leaves no single image of train.global_batch over"
        )


def check_crop(side: int, patch: int, backbone: str) -> None:
    """UserError for a crop that is not cut into at least 2 x 2 whole patches."""
    grid_of(side, patch, backbone, what="data.image_size=", least=2)


def build_upernet(encoder: "Encoder", num_classes: int, config: Ade20kConfig) -> UperNet:
    """UperNet of the recipe's sizes on an encoder with four taps, new weights everywhere but in the encoder."""
    if len(encoder.taps) != 4:
        raise UserError(f"the encoder gives {len(encoder.taps)} feature maps, the pyramid needs 4: set 4 model.taps")
    side, patch = config.data.image_size, encoder.patch_size
    check_crop(side, patch, encoder.name)
    model, channels = config.model, encoder.embed_dim
    upernet, fcn = import_heads()
    common = {
        "num_classes": num_classes,
        "dropout_ratio": model.dropout,
        "norm_cfg": {"type": BatchNorm},
        "align_corners": False,
        # never called; reduction "none" keeps its constructor from warning about the mean
        "loss_decode": {"type": "CrossEntropyLoss", "reduction": "none"},
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="For binary segmentation, we suggest using")
        decode_head = upernet(
            in_channels=[channels] * 4,
            in_index=[0, 1, 2, 3],
            pool_scales=(1, 2, 3, 6),
            channels=model.head_channels or channels,
            **common,
        )
        auxiliary_head = fcn(
            in_channels=channels,
            in_index=AUX_TAP,
            channels=model.aux_channels,
            num_convs=1,
            concat_input=False,
            **common,
        )
    for head in (decode_head, auxiliary_head):
        init_classifier(head)
    return UperNet(
        encoder,
        ViTPyramid(channels, norm=BatchNorm),
        decode_head,
        auxiliary_head,
        model.aux_weight,
        side,
        Predictor(num_classes, side, patch, config.eval),
    )


def init_classifier(head: Any) -> None:
    """What mmsegmentation's `init_weights()` does besides repeating the constructors' own initialisation.

    That one also logs a block of lines per parameter.
    """
    nn.init.normal_(head.conv_seg.weight, mean=0.0, std=0.01)
    nn.init.zeros_(head.conv_seg.bias)
