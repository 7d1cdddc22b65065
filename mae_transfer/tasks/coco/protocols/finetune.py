"""Fine-tuning of the whole encoder with a detector on it: Li et al. 2021 and ViTDet."""

from typing import TYPE_CHECKING, ClassVar

from torch import nn
from typing_extensions import override

from mae_transfer.tasks.coco.model import build_mask_rcnn
from mae_transfer.tasks.coco.protocols.protocol import TRAINING, Config, Protocol

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class Finetune(Protocol[Config]):
    reads: ClassVar[tuple[str, ...]] = (*TRAINING, "optim.layer_decay", "backbone.drop_path")

    def __init__(self, config: Config) -> None:
        from mae_transfer.backbones.configured import check_four_blocks

        super().__init__(config)
        if config.model.pyramid == "fpn":
            check_four_blocks(config.backbone.name)

    @override
    def build_model(self, encoder: "Encoder", num_classes: int, *, masks: bool) -> nn.Module:
        if self.config.model.implementation == "detectron2":
            from mae_transfer.tasks.coco.detectron2.engine import build_detectron2

            return build_detectron2(encoder, num_classes, self.config, masks=masks)
        return build_mask_rcnn(encoder, num_classes, self.config, masks=masks)
