"""Fine-tuning of the last blocks only, with the detector of full fine-tuning and its settings.

`model.blocks` is the number of blocks. Everything before them runs without autograd and in eval mode, tables of
relative positions that all blocks share included: new ones stay zero. No public recipe does this for COCO.
"""

from typing import TYPE_CHECKING, ClassVar

from torch import nn
from typing_extensions import override

from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.protocols.config import PartialConfig
from mae_transfer.tasks.coco.protocols.finetune import Finetune

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class Partial(Finetune[PartialConfig]):
    reads: ClassVar[tuple[str, ...]] = (*Finetune.reads, "model.blocks")

    def __init__(self, config: PartialConfig) -> None:
        super().__init__(config)
        if config.model.blocks is None:
            raise UserError("the protocol partial needs model.blocks (--blocks): 0, 0.5, 1, 2, ... the encoder's depth")
        self._blocks = config.model.blocks

    @override
    def build_model(self, encoder: "Encoder", num_classes: int, *, masks: bool) -> nn.Module:
        encoder.freeze(self._blocks)
        return super().build_model(encoder, num_classes, masks=masks)
