"""The contract of a protocol: what is done with an encoder to detect objects.

A protocol is a class named in the task's card. `Protocol` has the defaults; `build_model` has none.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from torch import nn

from mae_transfer.config.sections import BackboneConfig, OptimConfig
from mae_transfer.engine.contract import Contract
from mae_transfer.tasks.coco.config import CocoConfig
from mae_transfer.tasks.coco.model import square_side

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

TRAINING = (
    *(f"optim.{name}" for name in OptimConfig.model_fields if name != "layer_decay"),
    *("schedule", "train.global_batch", "train.micro_batch"),
)
"""What a protocol with a training loop reads, for its `reads`; layer decay is for encoders that are trained."""

Config = TypeVar("Config", bound=CocoConfig)


class Protocol(Contract, ABC, Generic[Config]):
    """A protocol of one run, made from its configuration."""

    trains: ClassVar[bool] = True
    needs_training_images: ClassVar[bool] = True
    """Without, only the validation images and their annotations have to be there."""
    reads: ClassVar[tuple[str, ...]] = TRAINING

    def __init__(self, config: Config) -> None:
        self.config = config

    def encoder_options(self, patch_size: int) -> dict[str, object]:
        """Arguments of `load_backbone`."""
        model = self.config.model
        return {
            "img_size": square_side(self.config.data.image_size, patch_size),
            "pos_embed": model.pos_embed,
            "abs_pos": model.abs_pos,
            "random_init": model.random_init,
        }

    def backbone(self) -> BackboneConfig:
        """The encoder to build, with its weights."""
        return self.config.backbone

    @abstractmethod
    def build_model(self, encoder: "Encoder", num_classes: int, *, masks: bool) -> nn.Module:
        """The detector, with the encoder as its attribute `encoder`; without `masks` it has no mask head.

        Raises:
            UserError: settings that do not fit together or to the encoder.
        """
