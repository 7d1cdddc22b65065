"""The sections that COCO adds to the shared configuration."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mae_transfer.config.roles import Place, Role
from mae_transfer.config.sections import (
    LARGEST_RESIZED,
    Depth,
    EvalSection,
    LabelledSection,
    RunConfig,
    Section,
    Width,
)


class DataConfig(LabelledSection):
    """COCO 2017 layout under `root`, or any COCO-format set by its own paths."""

    root: Place = None
    """Folder with train2017/, val2017/ and annotations/instances_{train,val}2017.json; `synthetic` makes a tiny set."""
    train_json: Place = None
    """COCO-format annotations, instead of the layout under `root`; also the next three."""
    train_images: Place = None
    """Folder of the training images."""
    val_json: Place = None
    """COCO-format annotations of the val images."""
    val_images: Place = None
    """Folder of the val images."""
    fraction_rule: Literal["hash", "mmdetection"] = "hash"
    """Which images a fraction is: by our hash of their names, of those with objects; or by mmdetection's rule of all,
    the published folds of 1, 2, 5 and 10 %, whose fold is `draw` + 1."""
    image_size: int = Field(gt=32, le=8192)
    """Side of the square input in pixels, in training and test."""
    scale_min: float = Field(gt=0)
    """Least scale of the large-scale jitter."""
    scale_max: float = Field(gt=0)
    """Large-scale jitter: the image is resized to fit `image_size` times U(scale_min, scale_max)."""
    pad_value: int | None = Field(None, ge=0, le=255)
    """Training: a number pads the crop to the square with that grey and counts it as image; None leaves it short."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""

    @model_validator(mode="after")
    def _scales_in_order(self) -> "DataConfig":
        if self.scale_min > self.scale_max:
            raise ValueError(f"data.scale_min={self.scale_min:g} is above data.scale_max={self.scale_max:g}")
        if self.image_size * self.scale_max > LARGEST_RESIZED:
            raise ValueError(
                f"data.scale_max={self.scale_max:g} times data.image_size={self.image_size} is above {LARGEST_RESIZED} "
                "pixels"
            )
        return self


class ModelConfig(Section):
    """Mask R-CNN on the pyramid of the encoder."""

    implementation: Literal["torchvision", "detectron2"] = "torchvision"
    """Code of the detector (`--engine`): this project's on torchvision's operators, or detectron2 where it is
    installed."""

    pyramid: Literal["fpn", "simple"] = "fpn"
    """`fpn`: four taps and an FPN (Li et al.); `simple`: all maps from the last one (ViTDet)."""
    pos_embed: Literal["native", "resized"] = "native"
    """Position embedding of the encoder: resampled to the input's grid at every forward (ViTDet), or once, and trained
    there (Li et al.)."""
    abs_pos: bool = False
    """Give weights with relative positions alone (BEiT) absolute ones too, new, at the input's grid (Li et al.)."""
    random_init: Literal["timm", "beit"] = "timm"
    """Initialisation of an encoder without weights: timm's, or that of BEiT's code (Li et al.)."""
    norm: Literal["BN", "LN"] = "BN"
    """Norm in pyramid and heads. BN is synchronised over devices when there are several; LN is over the channels."""
    cascade: bool = False
    """Three box heads, each on the boxes of the one before (Cascade Mask R-CNN)."""
    fpn_channels: Width = 256
    """Channels of the pyramid."""
    rpn_convs: Depth = Field(2, ge=1)
    """Convolutions of the RPN before its predictors."""
    box_convs: Depth = 4
    """Convolutions of the box head."""
    mask_convs: Depth = Field(4, ge=1)
    """Convolutions of the mask head."""
    head_channels: Width = 256
    """Channels of the heads' convolutions."""
    box_fc: Width = 1024
    """Width of the box head's last layer."""
    rpn_batch_per_image: int = Field(256, ge=1)
    """Anchors of an image that the RPN's loss samples."""
    roi_batch_per_image: int = Field(512, ge=1)
    """RoIs of an image that the heads' losses sample."""
    loss_average: Literal["image", "batch"] = "image"
    """`image`: mean over images of each image's loss, the same however a batch is split. `batch`: over all RoIs of a
    forward pass, which is what one detectron2 process does; the two are equal at one image per device."""


class EvalConfig(EvalSection):
    score_threshold: float = Field(0.05, ge=0, lt=1)
    """Detections below this score are dropped."""
    nms_threshold: float = Field(0.5, gt=0, le=1)
    """Overlap above which of two boxes of a class the lower one is dropped."""
    max_detections: int = Field(100, ge=1)
    """Detections of an image that are kept, the highest scores."""
    images: Annotated[int | None, Role.EVALUATION] = Field(None, ge=1)
    """Evaluate only this many val images with objects, always the same ones; None is all."""
    per_class: Annotated[bool, Role.OPERATIONAL] = False
    """Also record AP per category."""


class CocoConfig(RunConfig):
    task: Literal["coco"] = "coco"
    """As in `--task`."""
    data: DataConfig
    model: ModelConfig
    eval: EvalConfig
