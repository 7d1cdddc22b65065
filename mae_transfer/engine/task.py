"""The contract between a task and the engine.

A task holds its data and builds its model. `engine.loop.train` trains the model and `runs/run.py` makes a run of it;
neither knows anything else of a task. `BaseTask` has the defaults: a task writes down only where it differs.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from torch import nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.run_folder.per_image import Arrays
    from mae_transfer.run_folder.pictures import Picture

SampleKey: TypeAlias = tuple[int, int]
"""(epoch, index) of a training sample."""


class TrainDataset(Protocol):
    """A map-style data set whose samples depend on nothing but their key and the run's seed.

    All randomness of `dataset[(epoch, index)]` comes from `np.random.default_rng((seed, epoch, index))`, none from
    the global generators: so a sample is the same on any rank, in any worker, before and after a resume.
    A `UserError` raised in a worker reaches the user as it is.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey, /) -> Any: ...

    def collate(self, samples: list[Any], /) -> Any:
        """One batch (tensors, or dicts and lists of them: whatever the model takes) from a list of samples."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, the same on every rank."""

    metrics: dict[str, float]
    """Flat. A name with a slash, such as `IoU/wall`, is a detail that no table shows."""
    per_image: "Arrays | None" = None
    """Results of single val images for paired intervals (`run_folder/per_image.py`); None if the metric is no mean."""
    head: str | None = None
    """The head that counts, of a model with several; it was chosen without the val images."""


class BaseTask(ABC):
    """A task: data, model and metric.

    `config` is its configuration; `config.data.workers` is the number of loader processes of each rank.
    `train_dataset` is what the loop trains on. `warnings` are lines about the data that a user should see. A task with
    `trains = False` has no training loop: `prepare` does all there is to do. `fixed_sizes` says that the shapes of a
    training step are always the same, so that a GPU may look for the fastest convolutions of them (`engine/fast.py`).
    `shards` says that a test has compared training with `train.shard` (`engine/shard.py`) with training without.
    """

    config: Any
    train_dataset: TrainDataset
    warnings: Sequence[str] = ()
    trains: bool = True
    fixed_sizes: bool = False
    shards: bool = False

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def make(cls, config: Any, protocol: "type[Any] | None" = None, like: "BaseTask | None" = None) -> "BaseTask":
        """The task of a configuration, with its data read and checked; UserError for anything wrong with them.

        Args:
            protocol: the class of the configuration's protocol or method; None for a task without.
            like: the task of another run of the same series. What it has read may be taken over.
        """
        return cls(config)

    @property
    @abstractmethod
    def data_summary(self) -> dict[str, Any]:
        """`name`, `fingerprint`, `train_images`, `val_images`, `skipped_files`, and more for the record."""

    @abstractmethod
    def build_model(self, encoder: "Encoder", /) -> nn.Module:
        """The model to train, with the encoder as its attribute `encoder`.

        In training mode `model(batch)` is a dict of scalar losses, each a mean over the images of the batch; their sum
        is minimised. The keys are the same for every batch, and every trainable parameter takes part in every one.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, fabric: "Fabric", progress: bool, /) -> Evaluation:
        """Evaluate on the val images.

        The model is in eval mode and bare (no DDP wrapper, so ranks may run different numbers of batches); for mixed
        precision run it under `fabric.autocast()`, which is then that of `eval.precision`.
        """

    def encoder_options(self, patch_size: int, /) -> dict[str, Any]:
        """What `load_backbone` needs of the task: `img_size`, and `taps` if they are not the default ones."""
        return {}

    def build_encoder(self) -> "Encoder":
        """The encoder that the configuration names, as the task wants it, with its weights."""
        from mae_transfer.backbones.configured import encoder_of

        return encoder_of(self.config.backbone, self.encoder_options)

    def with_classes(self, count: int, /) -> None:
        """Give models this many classes, whatever the data have: for a plan of a benchmark that is not there."""

    def check_batches(self, sizes: Collection[int], /) -> None:
        """UserError if a micro-batch of one of these numbers of images cannot be trained on."""

    def check_images(self) -> None:
        """UserError if a setting takes more training images than there are."""

    def prepare(self, model: nn.Module, fabric: "Fabric", folder: "RunFolder | None", progress: bool, /) -> None:
        """What comes before training and before any evaluation, such as the features of a frozen encoder.

        Called on every rank, with the run folder open (on rank 0, None elsewhere) and the model on the CPU.
        """

    def sample_names(self, batch: Any, /) -> Sequence[str]:
        """Image ids or file names of a batch, in order; used in the message that stops a diverged run."""
        return ()

    def draw_pictures(self, model: nn.Module, fabric: "Fabric", evaluation: Evaluation, /) -> "Sequence[Picture]":
        """Pictures of `eval.pictures` fixed val images with what the model makes of them; called on rank 0 alone."""
        return ()
