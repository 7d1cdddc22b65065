"""The sections that ADE20K, or any other set of images and label masks, adds to the shared configuration."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mae_transfer.config.roles import Place, Role
from mae_transfer.config.sections import LARGEST_RESIZED, EvalSection, LabelledSection, RunConfig, Section, Width


class PairsConfig(LabelledSection):
    """Which images and masks: ADE20K's layout under `root`, or any folders by their own paths."""

    root: Place = None
    """Folder with images/{training,validation} and annotations/{training,validation}; `synthetic` makes a tiny set."""
    train_images: Place = None
    """Folder of the training images, instead of the layout under `root`; also the next three."""
    train_masks: Place = None
    """Folder of the training masks."""
    val_images: Place = None
    """Folder of the val images."""
    val_masks: Place = None
    """Folder of the val masks."""
    image_suffix: str = ".jpg"
    """How image files end; what stands before it (with subfolders) names the pair."""
    mask_suffix: str = ".png"
    """How mask files end. A mask has one channel of 1, 8 or 16 bit, or a palette whose indices are the labels."""
    num_classes: int = Field(150, ge=2, le=4096)
    """Classes that the masks may hold, besides what is ignored."""
    class_names: Annotated[str | None, Role.OPERATIONAL] = None
    """Text file with one name per class and line; None is ADE20K's 150 names, or numbers for another `num_classes`."""
    reduce_zero_label: bool = True
    """Mask value 0 is ignored and 1 .. num_classes are the classes, as in ADE20K; else 0 .. num_classes - 1 are."""
    ignore_value: int | None = Field(255, ge=0, le=65535)
    """Mask value that counts neither in the loss nor in the metric, besides 0 with `reduce_zero_label`."""

    @model_validator(mode="after")
    def _ignores_no_class(self) -> "PairsConfig":
        first = 1 if self.reduce_zero_label else 0
        if self.ignore_value is not None and first <= self.ignore_value < first + self.num_classes:
            raise ValueError(
                f"ignore_value {self.ignore_value} is the value of a class ({first}..{first + self.num_classes - 1}); "
                "set data.ignore_value to another, such as 65535, or to null"
            )
        return self


class DataConfig(PairsConfig):
    """How they are read by the protocols that train on crops and predict in windows."""

    image_size: int = Field(ge=32, le=8192)
    """Side in pixels of the training crop and of the evaluation window."""
    short_side: int = Field(ge=32)
    """Pixels of the shorter side at ratio 1; the longer is at most `long_side`. Also the size in evaluation."""
    long_side: int = Field(ge=32)
    """Pixels that the longer side may have."""
    ratio_min: float = Field(gt=0)
    """Least ratio of the random resize."""
    ratio_max: float = Field(gt=0)
    """Training: both sides above times U(ratio_min, ratio_max)."""
    cat_max_ratio: float = Field(0.75, gt=0, le=1)
    """A crop with a larger share of one class is drawn again, up to 10 times; 1 takes the first."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    photometric: bool = True
    """Training: random brightness, contrast, saturation and hue."""

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.ratio_min > self.ratio_max:
            raise ValueError(f"ratio_min {self.ratio_min} is above ratio_max {self.ratio_max}")
        if self.short_side * max(self.ratio_max, 1) > LARGEST_RESIZED:
            raise ValueError(
                f"short_side {self.short_side} at ratio {self.ratio_max:g} is above {LARGEST_RESIZED} pixels"
            )
        if self.short_side < self.image_size:
            raise ValueError(
                f"short_side {self.short_side} is below image_size {self.image_size}, so that every window of the "
                "evaluation would be padded; set data.short_side and data.long_side too"
            )
        if self.short_side > self.long_side:
            raise ValueError(f"short_side {self.short_side} is above long_side {self.long_side}")
        return self


class ModelConfig(Section):
    """UperNet on the pyramid of the encoder, and what it asks of the encoder."""

    taps: tuple[int, int, int, int] | None = None
    """0-based blocks whose outputs make the pyramid; None is the block that ends each quarter."""
    pos_embed: Literal["native", "resized"] = "resized"
    """The absolute position embedding: trained at the weights' own grid and resampled at every forward, or resampled
    once to `data.image_size` and trained there."""
    layer_scale: float | None = None
    """Initial value of a trainable LayerScale where the backbone has none; None adds none."""
    head_channels: Width | None = None
    """Channels of UPerHead; None is the encoder's embed dim."""
    aux_channels: Width = 256
    """Channels of the auxiliary FCN head."""
    aux_weight: float = Field(0.4, ge=0)
    """Weight of the auxiliary head's loss."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout2d before the classifier of either head."""


class SegmentationEval(EvalSection):
    """What the evaluations of all protocols hold."""

    batch_size: Annotated[int, Role.OPERATIONAL] = Field(8, ge=1)
    """Images, or windows of images, per device in one forward pass; whole images of any size go one by one."""
    per_class: Annotated[bool, Role.OPERATIONAL] = False
    """Also record IoU and accuracy of each class."""


class EvalConfig(SegmentationEval):
    """How whole images are predicted by a network of one input size."""

    mode: Annotated[Literal["slide", "whole"], Role.EVALUATION] = "slide"
    """`slide`: windows of `data.image_size`, logits averaged where they overlap; `whole`: the image in one piece."""
    stride: Annotated[int, Role.EVALUATION] = Field(ge=1)
    """Pixels between windows."""
    ratios: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Role.EVALUATION] = Field((1.0,), min_length=1)
    """Sizes of the image relative to `short_side`; several are averaged (multi-scale)."""
    flip: Annotated[bool, Role.EVALUATION] = False
    """Average with the mirrored image."""
    resize: Annotated[Literal["opencv", "pillow"], Role.EVALUATION] = "opencv"
    """Whose bilinear filter resizes the image; Pillow's smooths where it shrinks, as in DINOv3."""


class SegmentationConfig(RunConfig):
    """What the configurations of all protocols hold."""

    task: Literal["ade20k"] = "ade20k"
    """As in `--task`."""
    data: PairsConfig
    eval: SegmentationEval


class CropsConfig(SegmentationConfig):
    """Of every protocol that trains on crops."""

    data: DataConfig
    eval: EvalConfig

    @model_validator(mode="after")
    def _windows_cover(self) -> "CropsConfig":
        if self.eval.stride > self.data.image_size:
            raise ValueError(
                f"eval.stride {self.eval.stride} is above data.image_size {self.data.image_size}: windows leave gaps"
            )
        if self.data.short_side * max(self.eval.ratios) > LARGEST_RESIZED:
            raise ValueError(
                f"data.short_side {self.data.short_side} at eval.ratios {max(self.eval.ratios):g} is above "
                f"{LARGEST_RESIZED} pixels"
            )
        return self


class Ade20kConfig(CropsConfig):
    """Of the protocol upernet, which its runs do not name: they are older than the other protocols."""

    model: ModelConfig
