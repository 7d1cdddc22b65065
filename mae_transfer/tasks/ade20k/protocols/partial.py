"""Fine-tuning of the last blocks only, with UperNet on them and the settings of full fine-tuning.

`model.blocks` is the number of blocks. Everything before them runs without autograd and in eval mode, tables of
relative positions that all blocks share included: new ones stay zero. No public recipe does this for ADE20K.
"""

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.protocols.config import PartialConfig
from mae_transfer.tasks.ade20k.protocols.upernet import UperNet, Upernet

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class Partial(Upernet):
    reads: ClassVar[tuple[str, ...]] = (*Upernet.reads, "model.blocks")

    def __init__(self, config: PartialConfig) -> None:
        super().__init__(config)
        if config.model.blocks is None:
            raise UserError("the protocol partial needs model.blocks (--blocks): 0, 0.5, 1, 2, ... the encoder's depth")
        self._blocks = config.model.blocks

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> UperNet:
        encoder.freeze(self._blocks)
        return super().build_model(encoder, num_classes)
