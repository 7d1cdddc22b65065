"""The contract of a protocol: what is done with an encoder to classify images.

A protocol is a class named in the task's card. `Protocol` has the defaults; only `build_model` has none.
docs/extending/protocol.md adds one.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

from torch import nn

from mae_transfer.config.sections import OptimConfig
from mae_transfer.engine.contract import Contract
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.pictures import draw_grid, predict
from mae_transfer.tasks.classification.splits import ImageSplits, Splits

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.run_folder.pictures import Picture


TRAINING = (
    *(f"optim.{name}" for name in OptimConfig.model_fields if name != "layer_decay"),
    *("schedule", "train.global_batch", "train.micro_batch"),
    *("data.crop", "data.scale_min", "data.flip", "data.randaugment"),
)
"""What a protocol with a training loop reads, for its `reads`; layer decay is for encoders that are trained."""


class Selection(NamedTuple):
    """A choice that a model made itself on the images set aside, such as the strength of a regularisation."""

    name: str
    holdout_top1: dict[str, float]
    """Percent of each candidate."""


class ProbeModel(nn.Module):
    """A model of one or several heads of K classes on an encoder.

    In training mode a batch {"images": uint8 (B, 3, H, W), "labels": int64 (B,), ...} gives a dict of losses, each a
    mean over the images. In eval mode it gives scores float32 (heads, B, K). Where the protocol put features in the
    place of the images, a batch has "features" instead.
    """

    encoder: "Encoder"
    head_names: tuple[str, ...]
    """Of several heads the best on the images set aside counts."""
    selection: Selection | None = None


Model = TypeVar("Model", bound=ProbeModel)


class Protocol(Contract, ABC, Generic[Model]):
    """A protocol of one run, made from its configuration.

    `trains = False`: no training loop, `prepare` does all there is to do.
    """

    trains: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    """As of `engine.task.BaseTask`."""
    needs_training_images: ClassVar[bool] = True
    """Without, only the validation split has to be there, and only that is read."""
    class_names: Sequence[str] = ()
    """Of the data set; the task sets them before it asks for the model."""
    reads: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ClassificationConfig) -> None:
        self.config = config

    def encoder_options(self) -> dict[str, object]:
        """Arguments of `load_backbone`."""
        return {"img_size": self.config.data.image_size}

    @abstractmethod
    def build_model(self, encoder: "Encoder", num_classes: int) -> Model:
        """The model, with the encoder as its attribute `encoder`.

        Raises:
            UserError: settings that do not fit together or to the encoder.
        """

    def check_batches(self, sizes: Collection[int]) -> None:
        """Check the numbers of images that micro-batches will have.

        Raises:
            UserError: one of them cannot be trained on.
        """

    def check_images(self, number: int) -> None:
        """Check settings against the number of training images, those set aside among them, before a run makes its
        first file.

        Raises:
            UserError: they take more images than there are.
        """

    def prepare(
        self, model: Model, images: ImageSplits, fabric: "Fabric", folder: "RunFolder | None", progress: bool
    ) -> Splits:
        """What comes before training and evaluation; the splits that take the place of the images.

        Called on every rank, with the run folder open (on rank 0, None elsewhere) and the model on the CPU.
        """
        return images

    def draw_pictures(
        self, model: Model, head: int, images: ImageSplits, class_names: Sequence[str], fabric: "Fabric"
    ) -> "list[Picture]":
        """Pictures of `eval.pictures` val images with what the head makes of them; called on rank 0 alone."""
        return draw_grid(predict(model, head, images.val, class_names, self.config.eval.pictures, fabric))
