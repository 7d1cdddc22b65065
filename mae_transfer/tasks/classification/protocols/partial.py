"""Fine-tuning of the last blocks only, as in MAE Figure 9 (section 4.3): the settings of Table 9, the rest frozen.

`model.blocks` is the number of blocks: 0.5 is the MLP of the last one (with the norm before it), the encoder's depth is
full fine-tuning. No block at all is the linear probe, a protocol of its own. Everything before the blocks that learn,
the position embedding too, runs without autograd and in eval mode. The authors released no code for this.
"""

from typing import TYPE_CHECKING

from typing_extensions import override

from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.protocols.finetune import Classifier, Finetune

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class Partial(Finetune):
    shards = False
    reads = (*Finetune.reads, "model.blocks")

    def __init__(self, config: ClassificationConfig) -> None:
        super().__init__(config)
        if config.model.blocks is None:
            raise UserError("the protocol partial needs model.blocks (--blocks): 0.5, 1, 2, ... the encoder's depth")
        self._blocks = config.model.blocks

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> Classifier:
        encoder.freeze(self._blocks)
        return super().build_model(encoder, num_classes)
