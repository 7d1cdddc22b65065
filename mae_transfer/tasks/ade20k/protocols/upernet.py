"""UperNet on a ViT encoder, as BEiT and the MAE paper transfer to ADE20K: mmsegmentation's own heads as plain modules.

`UPerHead` and `FCNHead` are those of the PyPI releases onedl-mmsegmentation, onedl-mmcv and onedl-mmengine; none of
mmsegmentation's runner, registry scopes or data containers is used. Settings of the heads are those of its
`configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py` (stride and schedule are not: `configs/ade20k/`),
initialisation that of its `init_weights()`; the loss is `segmentor.pixel_loss`.
"""

import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, distributed, nn
from typing_extensions import override

from mae_transfer.adapters.norm import BatchNorm
from mae_transfer.adapters.stage_pyramid import StagePyramid
from mae_transfer.adapters.vit_pyramid import ViTPyramid
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.config import Ade20kConfig
from mae_transfer.tasks.ade20k.inference import Predictor
from mae_transfer.tasks.ade20k.protocols.protocol import TRAINING, Protocol
from mae_transfer.tasks.ade20k.segmentor import Segmentor, check_crop, init_classifier, pixel_loss

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

STAGE_HEAD = 512
"""Channels of UperNet's head on a hierarchical encoder, as in Swin's and ConvNeXt's configurations."""
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


class UperNet(Segmentor):
    """UperNet with an auxiliary head, on an encoder that gives four taps (B, C, H/p, W/p).

    Args:
        pyramid: taps to four maps.
        decode_head, auxiliary_head: maps to logits (B, K, h, w); the auxiliary one is for training only.
        aux_weight: of the auxiliary loss.
    """

    def __init__(
        self,
        encoder: "Encoder",
        pyramid: nn.Module,
        decode_head: nn.Module,
        auxiliary_head: nn.Module,
        aux_weight: float,
        image_size: int,
        predictor: Predictor,
    ) -> None:
        super().__init__(encoder, image_size, predictor)
        self.pyramid = pyramid
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head
        self.aux_weight = aux_weight

    @override
    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """`loss_seg` and `loss_aux` (weighted); UserError if one image is all there is for batch norm."""
        check_norm_batch(len(images))
        maps = self.pyramid(self.encoder(images))
        return {
            "loss_seg": pixel_loss(self.decode_head(maps), targets),
            "loss_aux": self.aux_weight * pixel_loss(self.auxiliary_head(maps), targets),
        }

    @override
    def patch_logits(self, images: Tensor) -> Tensor:
        """Sides are multiples of the patch, at least 2."""
        logits: Tensor = self.decode_head(self.pyramid(self.encoder(images)))
        return logits


def check_norm_batch(images: int) -> None:
    """UserError for a forward pass whose images on all ranks are one: pooled to 1x1 it has no variance."""
    ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if images * ranks < 2:
        raise UserError(
            "UperNet's batch norm needs at least 2 images in each forward pass over all devices, and has 1: set "
            "train.micro_batch to 2 or more, so that it leaves no single image of train.global_batch over"
        )


def build_upernet(encoder: "Encoder", num_classes: int, config: Ade20kConfig) -> UperNet:
    """UperNet of the recipe's sizes on an encoder with four taps, new weights everywhere but in the encoder."""
    if len(encoder.taps) != 4:
        raise UserError(f"the encoder gives {len(encoder.taps)} feature maps, the pyramid needs 4: set 4 model.taps")
    side, patch = config.data.image_size, encoder.patch_size
    check_crop(side, patch, encoder.name)
    model, channels = config.model, encoder.map_channels
    stages = bool(encoder.spec.stages)
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
            in_channels=channels,
            in_index=[0, 1, 2, 3],
            pool_scales=(1, 2, 3, 6),
            channels=model.head_channels or (STAGE_HEAD if stages else encoder.embed_dim),
            **common,
        )
        auxiliary_head = fcn(
            in_channels=channels[AUX_TAP],
            in_index=AUX_TAP,
            channels=model.aux_channels,
            num_convs=1,
            concat_input=False,
            **common,
        )
    for head in (decode_head, auxiliary_head):
        # what mmsegmentation's `init_weights()` does besides repeating the constructors' own initialisation; that one
        # also logs a block of lines per parameter
        init_classifier(head.conv_seg)
    return UperNet(
        encoder,
        StagePyramid(channels) if stages else ViTPyramid(encoder.embed_dim, norm=BatchNorm),
        decode_head,
        auxiliary_head,
        model.aux_weight,
        side,
        Predictor(num_classes, side, patch, config.eval),
    )


class Upernet(Protocol[Ade20kConfig, UperNet]):
    reads: ClassVar[tuple[str, ...]] = (*TRAINING, "optim.layer_decay", "backbone.drop_path")

    def __init__(self, config: Ade20kConfig) -> None:
        from mae_transfer.backbones.configured import check_four_blocks

        super().__init__(config)
        check_four_blocks(config.backbone.name)

    @override
    def encoder_options(self, patch_size: int) -> dict[str, object]:
        side, model = self.config.data.image_size, self.config.model
        check_crop(side, patch_size, self.config.backbone.name)
        return {"img_size": side, "taps": model.taps, "pos_embed": model.pos_embed, "layer_scale": model.layer_scale}

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> UperNet:
        return build_upernet(encoder, num_classes, self.config)

    @override
    def check_batches(self, sizes: Collection[int]) -> None:
        check_norm_batch(min(sizes))
