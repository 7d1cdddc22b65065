"""The contract of a protocol: what is done with an encoder to segment images.

A protocol is a class named in the task's card. `Protocol` has the defaults, which are those of a training on crops;
`build_model` and `encoder_options` have none.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from torch import nn

from mae_transfer.config.sections import BackboneConfig, OptimConfig
from mae_transfer.engine.contract import Contract
from mae_transfer.tasks.ade20k.config import CropsConfig, SegmentationConfig
from mae_transfer.tasks.ade20k.data import Ade20kEval, Ade20kTrain, EvalSplit, Splits
from mae_transfer.tasks.ade20k.pairs import Pairs

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.folder import RunFolder

TRAINING = (
    *(f"optim.{name}" for name in OptimConfig.model_fields if name != "layer_decay"),
    *("schedule", "train.global_batch", "train.micro_batch"),
)
"""What a protocol with a training loop reads, for its `reads`; layer decay is for encoders that are trained."""

Config = TypeVar("Config", bound=SegmentationConfig)
Model = TypeVar("Model", bound=nn.Module)


class Protocol(Contract, ABC, Generic[Config, Model]):
    """A protocol of one run, made from its configuration.

    `trains = False`: no training loop, `prepare` does all there is to do.
    """

    trains: ClassVar[bool] = True
    needs_training_images: ClassVar[bool] = True
    """Without, only the validation pairs have to be there."""
    reads: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Config) -> None:
        self.config = config

    def datasets(self, train: Pairs, val: Pairs) -> Splits:
        """The pairs as data sets."""
        config = self.config
        assert isinstance(config, CropsConfig), "a protocol that does not train on crops has data sets of its own"
        return Splits(
            Ade20kTrain(train, config.data, seed=config.seed, subset=config.subset),
            Ade20kEval(val, config, subset=config.subset),
        )

    def backbone(self) -> BackboneConfig:
        """The encoder to build, with its weights."""
        return self.config.backbone

    @abstractmethod
    def encoder_options(self, patch_size: int) -> dict[str, object]:
        """Arguments of `load_backbone`; UserError for a size that cannot be cut into patches."""

    @abstractmethod
    def build_model(self, encoder: "Encoder", num_classes: int) -> Model:
        """The model, with the encoder as its attribute `encoder`.

        In training it gives losses, in evaluation a list of the images' classes, int16 (H, W) each.

        Raises:
            UserError: settings that do not fit together or to the encoder.
        """

    def check_batches(self, sizes: Collection[int]) -> None:
        """Check the numbers of images that micro-batches will have.

        Raises:
            UserError: one of them cannot be trained on.
        """

    def check_images(self, number: int) -> None:
        """Check settings against the number of training images, before a run makes its first file.

        Raises:
            UserError: they take more images than there are.
        """

    def prepare(
        self, model: Model, splits: Splits, fabric: "Fabric", folder: "RunFolder | None", progress: bool
    ) -> EvalSplit:
        """What comes before training and evaluation; what is evaluated in the place of the val pairs.

        Called on every rank, with the run folder open (on rank 0, None elsewhere) and the model on the CPU.
        """
        return splits.val

    def selection(self, model: Model) -> tuple[str | None, dict[str, float]]:
        """What the model chose on images set aside from training, and metrics that tell of the candidates."""
        return None, {}
