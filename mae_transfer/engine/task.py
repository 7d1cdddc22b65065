"""What a task owes the engine, and the engine a task.

A task holds its data and builds its model; `engine.loop.train` runs it and knows nothing else of it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from torch import nn

if TYPE_CHECKING:
    import numpy as np
    from lightning_fabric import Fabric

    from mae_transfer.run_folder.folder import RunFolder
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


class Task(Protocol):
    """A transfer task: data, model and metric."""

    @property
    def train_dataset(self) -> TrainDataset: ...

    @property
    def config(self) -> Any:
        """The task's configuration; `config.data.workers` is the number of loader processes per rank."""
        ...

    @property
    def data_summary(self) -> dict[str, Any]:
        """`name`, `fingerprint`, `train_images`, `val_images`, `skipped_files`, and more for the record."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """Lines about the data that a user should see."""
        ...

    @property
    def per_image(self) -> "Mapping[str, np.ndarray] | None":
        """Results of the single val images of the last evaluation (`results/per_image.py`), for a file beside the
        record; None of a task that keeps none."""
        ...

    @property
    def trains(self) -> bool:
        """Whether the loop trains the model; without it `prepare` does all there is to do (nearest neighbours)."""
        ...

    def check_batches(self, sizes: Collection[int], /) -> None:
        """UserError if a micro-batch of one of these numbers of images cannot be trained on."""
        ...

    def encoder_options(self, patch_size: int, /) -> dict[str, Any]:
        """What `load_backbone` needs of the task: `img_size`, and `taps` if they are not the default ones."""
        ...

    def build_model(self, encoder: Any, /) -> nn.Module:
        """The model to train, with the encoder as its attribute `encoder`.

        In training mode `model(batch)` is a dict of scalar losses, each a mean over the images of the batch; their sum
        is minimised. The keys are the same for every batch, and every trainable parameter takes part in every one.
        """
        ...

    def prepare(self, model: nn.Module, fabric: "Fabric", folder: "RunFolder | None", progress: bool, /) -> None:
        """What comes before training and before any evaluation, such as the features of a frozen encoder.

        Called on every rank, with the run folder open (on rank 0, None elsewhere) and the model on the CPU.
        """
        ...

    def sample_names(self, batch: Any, /) -> Sequence[str]:
        """Image ids or file names of a batch, in order; used in the message that stops a diverged run."""
        ...

    def evaluate(self, model: nn.Module, fabric: "Fabric", progress: bool, /) -> dict[str, float]:
        """Flat metrics, the same dict on every rank.

        The model is in eval mode and bare (no DDP wrapper, so ranks may run different numbers of batches); for mixed
        precision run it under `fabric.autocast()`, which is then that of `eval.precision`.
        """
        ...

    def draw_pictures(self, model: nn.Module, fabric: "Fabric", /) -> "Sequence[Picture]":
        """Of `eval.pictures` fixed val images, what the model makes of them; on rank 0 alone, after `evaluate`."""
        ...
