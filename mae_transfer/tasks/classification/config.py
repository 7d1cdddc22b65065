"""The sections that image classification, by any protocol, adds to the shared configuration."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from mae_transfer.config.roles import Place, Role
from mae_transfer.config.sections import EvalSection, LabelledSection, RunConfig, Section
from mae_transfer.tasks.classification.protocols.config import ProbeConfig

Resizing: TypeAlias = tuple[Literal["bicubic", "bilinear"], bool]
"""Interpolation, and whether an image is squashed into the square."""


class DataConfig(LabelledSection):
    """The layout of the task's name under `root`, or lists of paths and labels."""

    root: Place = None
    """Folder of the data set as its official archives unpack; `synthetic` makes a tiny set of the task's layout."""
    train_list: Place = None
    """List of training images; see `val_list`."""
    val_list: Place = None
    """CSV or Parquet files with the columns `path` and `label`, instead of the layout; paths are relative to `root`, or
    to the list's own folder without it."""
    places_size: Literal["large", "small"] | None = None
    """Places365: which images to take where both are there; small ones are 256x256."""
    shots: int | None = Field(None, ge=1)
    """Few-shot: train on this many images of each class."""
    holdout: float = Field(0.0, ge=0, lt=1)
    """Share of each class's training images that is set aside to choose by (heads, k, C), and not trained on."""
    image_size: int = Field(ge=16, le=8192)
    """Side of the square input in pixels, in training and test."""
    crop: Literal["random", "single", "center"]
    """Training: RandomResizedCrop as in torchvision (10 tries, else the centre), the same with one try that is cut to
    the image (MAE's linear probe), or the evaluation's resize and centre crop."""
    scale_min: float = Field(0.08, gt=0, le=1)
    """Random crops: least share of the image's area."""
    flip: float = Field(ge=0, le=1)
    """Training: probability of a horizontal flip."""
    randaugment: str | None = None
    """timm's policy string, such as rand-m9-mstd0.5-inc1."""
    imagenet_a: Annotated[str | None, Role.OPERATIONAL] = None
    """Folder of ImageNet-A, a robustness set that is evaluated as well; also the next three. Classes are matched by
    folder name."""
    imagenet_r: Annotated[str | None, Role.OPERATIONAL] = None
    """Folder of ImageNet-R."""
    imagenet_sketch: Annotated[str | None, Role.OPERATIONAL] = None
    """Folder of ImageNet-Sketch."""
    imagenet_c: Annotated[str | None, Role.OPERATIONAL] = None
    """Folder of ImageNet-C."""

    @model_validator(mode="after")
    def _one_kind_of_few(self) -> "DataConfig":
        if self.shots is not None and self.fraction is not None:
            raise ValueError("data.shots and data.fraction: give one of them")
        return self

    @property
    def augments(self) -> bool:
        """Whether a training image differs from epoch to epoch."""
        return self.crop != "center" or self.flip > 0 or self.randaugment is not None


class ClassifierConfig(Section):
    """What is put on an encoder that is trained with labels, and the regularisation on the device."""

    head_std: float = Field(2e-5, gt=0)
    """Standard deviation of the classifier's first weights."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup, 0 is none; timm's Mixup takes it or cutmix, half of the batches each."""
    cutmix: float = Field(0.0, ge=0)
    """Alpha of cutmix, 0 is none."""
    erasing: float = Field(0.0, ge=0, le=1)
    """Probability of random erasing, with noise per pixel."""


class ModelConfig(ClassifierConfig):
    """Of finetune and partial."""

    blocks: float | None = Field(None, gt=0)
    """partial: how many of the last blocks are trained; 0.5 is the MLP of the last one."""


class EvalConfig(EvalSection):
    crop_pct: float | None = Field(None, ge=0.1, le=1)
    """The image's shorter side is resized to image_size / crop_pct, then the centre is cut out; None is 0.875 up to 224
    pixels and 1 above (facebookresearch/mae util/datasets.py)."""
    mask_classes: Annotated[bool, Role.EVALUATION] = True
    """ImageNet-A and -R: choose among their 200 classes only."""
    batch_size: Annotated[int, Role.OPERATIONAL] = Field(64, ge=1)
    """Images per device in one forward pass of the evaluation."""
    per_class: Annotated[bool, Role.OPERATIONAL] = False
    """Also record the accuracy of each class."""


class ClassificationConfig(RunConfig):
    protocol: str
    """As the task's card has it."""
    data: DataConfig
    model: ModelConfig
    probe: ProbeConfig
    eval: EvalConfig

    @property
    def resizing(self) -> Resizing:
        """Of the evaluation; a classifier that was trained elsewhere has its own."""
        return "bicubic", False

    @model_validator(mode="after")
    def _fits_together(self) -> "ClassificationConfig":
        if self.data.crop == "center" and self.data.randaugment is not None:
            raise ValueError("data.crop=center is for training without augmentation; set data.randaugment=null")
        robustness = ("imagenet_a", "imagenet_r", "imagenet_sketch", "imagenet_c")
        given = [name for name in robustness if getattr(self.data, name) is not None]
        if given and self.task != "imagenet":
            raise ValueError(f"data.{given[0]} is evaluated with --task imagenet only")
        return self
