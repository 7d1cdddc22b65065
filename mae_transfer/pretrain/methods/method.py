"""The contract of a pre-training method, with defaults: a method writes down only where it differs.

A line in the card (`pretrain/card.py`) names a method's class and the class of its configuration.
docs/extending/pretraining_method.md adds a method step by step.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from torch import nn

from mae_transfer.backbones.registry import Spec
from mae_transfer.engine.contract import Contract
from mae_transfer.pretrain.config import PretrainConfig
from mae_transfer.pretrain.encoder import new_encoder, spec_of
from mae_transfer.pretrain.views import Views

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.backbones.vit import ViTEncoder
    from mae_transfer.pretrain.data import PretrainImages
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.run_folder.pictures import Picture

Config = TypeVar("Config", bound=PretrainConfig)
Model = TypeVar("Model", bound=nn.Module)


class Method(Contract, ABC, Generic[Config, Model]):
    """A pre-training method of one configuration."""

    rotary: ClassVar[bool] = False
    """The method trains encoders with rotary positions too, which may lack absolute positions and a class token."""
    shards: ClassVar[bool] = False
    """As of `engine.task.BaseTask`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def title(self) -> str:
        """The row of such an encoder in the tables of transfer."""

    @abstractmethod
    def build_model(self, encoder: "ViTEncoder", num_classes: int | None) -> Model:
        """The model to train, with new weights and with the encoder as its attribute `encoder`.

        It takes a batch: "images" uint8 (B, C, H, W), "labels" int64 (B,), -1 without labels, "names", and what the
        views add. In training mode it gives a dict of losses, each a mean over the images. In eval mode it gives a dict
        of float32 (B,), a value for each image; their means over the val images are the metrics `val_<name>`.

        Args:
            num_classes: None without labels.

        Raises:
            UserError: sizes, labels or targets that do not go together.
        """

    def make_views(self) -> Views:
        """From a decoded image to a sample. UserError for masks and sizes that cannot be."""
        return Views(self.config)

    def spec(self) -> Spec:
        """Of the encoder; UserError for a backbone that the method does not train."""
        return spec_of(self.config, rotary=self.rotary)

    def build_encoder(self) -> "ViTEncoder":
        """The encoder of `config.backbone` with new weights, from the global generator."""
        return new_encoder(self.spec(), self.config)

    def check_batches(self, sizes: Collection[int]) -> None:
        """UserError if a micro-batch of one of these numbers of images cannot be trained on."""

    def prepare(self, model: Model, dataset: "PretrainImages", fabric: "Fabric", folder: "RunFolder | None") -> None:
        """What comes before training and before any evaluation: principal components, a tokenizer.

        Called on every rank, with the model on the CPU, the training images, and the run folder on rank 0 (None
        elsewhere).
        """

    def draw_pictures(
        self, model: Model, dataset: "PretrainImages", split: str, fabric: "Fabric"
    ) -> "Sequence[Picture]":
        """Pictures of `config.eval.pictures` images with what the model makes of them; called on rank 0 alone.

        Args:
            dataset: val images, or training images where there are no val images.
            split: "val" or "training".
        """
        return ()
