"""The configurations of the protocols beside UperNet."""

from typing import Annotated, Literal

from pydantic import Field

from mae_transfer.config.layers import Layers, StoredLayers
from mae_transfer.config.roles import Role
from mae_transfer.config.sections import PowerOfTen, Section
from mae_transfer.tasks.ade20k.config import (
    Ade20kConfig,
    CropsConfig,
    DataConfig,
    ModelConfig,
    PairsConfig,
    SegmentationConfig,
)

Side = Annotated[int, Field(ge=16, le=8192)]
"""Of an image, in pixels."""


class PartialModel(ModelConfig):
    """Of the protocol partial."""

    blocks: float | None = Field(None, ge=0)
    """How many of the last blocks are trained (`--blocks`); 0.5 is the MLP of the last one, 0 freezes the encoder."""


class PartialConfig(Ade20kConfig):
    """Of the protocol partial."""

    protocol: Literal["partial"]
    """As in `--protocol`."""
    model: PartialModel


class TrainedModel(ModelConfig):
    """Of the protocol trained: a UperNet, or (`recipe=trained_linear`) a linear head on an encoder."""

    classifier: Annotated[str | None, Role.COMPARED] = None
    """Path of a linear head that is a file of its own (DINOv2's, DINOv3's); the encoder is that of `--checkpoint`."""
    layers: Layers | None = None
    """Blocks whose normed patch tokens the linear head reads, as for linear; null where the model is a UperNet."""


class TrainedConfig(Ade20kConfig):
    """Of the protocol trained."""

    protocol: Literal["trained"]
    """As in `--protocol`."""
    model: TrainedModel


class FinetuneLinearData(DataConfig):
    """Of the protocol finetune_linear, whose evaluation has another size than its training."""

    fit_side: int = Field(ge=32, le=8192)
    """Training: pixels of the longer side at ratio 1; `short_side` and `long_side` are the evaluation's alone."""


class FinetuneLinearModel(Section):
    """The linear layer, and how the encoder under it learns."""

    encoder_lr: float = Field(gt=0)
    """Learning rate of the whole encoder over optim.lr."""
    final_norm: bool = True
    """Patch tokens go through the weights' own norm after the blocks, which learns too; false takes the last block's
    output."""


class FinetuneLinearConfig(CropsConfig):
    """Of the protocol finetune_linear."""

    protocol: Literal["finetune_linear"]
    """As in `--protocol`."""
    data: FinetuneLinearData
    model: FinetuneLinearModel


class LinearSection(Section):
    """What the linear head reads of the frozen encoder, and how."""

    layers: Layers
    """Blocks whose patch tokens are read, side by side: `last`, `last_four`, `four_even` (DINOv3's: the last of
    each quarter, 4 11 17 23 at depth 24), or 0-based numbers."""
    final_norm: bool = True
    """They go through the weights' own norm after the blocks; false takes the blocks' output."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of whole channels that is dropped before the batch norm in training."""


class LinearConfig(CropsConfig):
    """Of the protocol linear."""

    protocol: Literal["linear"]
    """As in `--protocol`."""
    probe: LinearSection


Metric = Literal["cosine", "l2"]


class PatchesData(PairsConfig):
    """Images and masks of the protocols that fit patches, without augmentation."""

    image_size: Side | tuple[Side, Side]
    """Side, or height and width, that images and masks are stretched to; multiples of the patch."""
    holdout: float = Field(0.0, ge=0, lt=1)
    """knn, logreg: share of the training images that is set aside to choose by (k, metric, C)."""


class PatchesSection(Section):
    """What is read of the frozen encoder, and what is fitted to its patches."""

    layers: Layers
    """Blocks whose patch tokens are read, side by side; as for linear."""
    stored_layers: StoredLayers = ()
    """Blocks whose features the pass over the images stores as well, each for a run of its own; `--layers` sets it."""
    final_norm: bool = True
    """They go through the weights' own norm after the blocks; false takes the blocks' output."""
    standardise: bool
    """Each feature less its mean, over its standard deviation, over the patches of the training images."""
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 3, 10, 30), min_length=1)
    """knn: numbers of neighbours."""
    metrics: tuple[Metric, ...] = Field(("cosine", "l2"), min_length=1)
    """knn: how near patches are."""
    c_powers: tuple[PowerOfTen, PowerOfTen] = (-6.0, 5.0)
    """logreg: the inverse regularisation strength C goes from 10 to the first to 10 to the second power."""
    c_count: int = Field(8, ge=1, le=1000)
    """logreg: number of values of C, evenly spaced in the power."""
    max_iter: int = Field(1000, ge=1)
    """logreg: iterations of L-BFGS for each C."""
    tolerance: float = Field(1e-4, gt=0)
    """logreg: a fit stops when no entry of its gradient is larger than this share of the objective, or of 1 if that is
    less, in principal components of features and classes, each in units in which the mean loss is curved by one at
    zero weights."""
    neighbours: int = Field(30, ge=1)
    """in_context: patches of the memory that a patch attends to."""
    temperature: float = Field(0.02, ge=1e-4)
    """in_context: of the softmax over cosine similarities."""
    memory_size: int | None = Field(None, ge=1)
    """in_context: patches that the memory holds; null is all of the training images."""


class PatchesConfig(SegmentationConfig):
    """Of the protocols knn, logreg and in_context."""

    protocol: Literal["knn", "logreg", "in_context"]
    """As in `--protocol`."""
    data: PatchesData
    probe: PatchesSection
