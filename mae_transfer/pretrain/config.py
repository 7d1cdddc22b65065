"""The configuration of a pre-training: what all methods share, and a class for each method."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mae_transfer.config.roles import Place, Role
from mae_transfer.config.sections import DataSection, Depth, EvalSection, RunConfig, Section, Width
from mae_transfer.tasks.classification.config import ClassifierConfig

Side = Annotated[int, Field(ge=4, le=8192)]


class DataConfig(DataSection):
    """Images under `root`, in class folders, plain folders or tar shards; labels are used where a method needs them."""

    root: Place = None
    """Folder of images at any depth, or with train/ and val/; a folder or pattern of .tar shards; their addresses
    (`https://HOST/train-{000000..000146}.tar`); or `synthetic`."""
    cache_gib: Annotated[float, Role.OPERATIONAL] = Field(300.0, gt=0)
    """GiB that shards fetched from addresses may take in the user's cache."""
    val_root: Place = None
    """Images to evaluate on, where they are not in `val/` of `root`."""
    channels: int = Field(3, ge=1)
    """3: images are read as RGB; 1: as grey. For any other number: .npy files of uint8 (H, W, channels)."""
    mean: tuple[float, ...] | None = None
    """Normalisation of pixels in 0 .. 1, a number for each channel; None is ImageNet's."""
    std: tuple[float, ...] | None = None
    """Standard deviations of pixels in 0 .. 1; see `mean`."""
    image_size: Side | tuple[Side, Side]
    """Pixels of the input: one side of a square, or height and width."""
    crop: Literal["random", "fixed", "center"]
    """MAE Table 1 (e): RandomResizedCrop, a random crop of fixed size, or the centre crop."""
    scale_min: float = Field(0.2, gt=0, le=1)
    """Random crops: least share of the image's area."""
    flip: float = Field(ge=0, le=1)
    """Probability of a horizontal flip."""
    color_jitter: float = Field(0.0, ge=0, lt=1)
    """Strength of random brightness, contrast and saturation; 0 is none."""
    randaugment: str | None = None
    """timm's policy string, such as rand-m9-mstd0.5-inc1."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else side


class EvalConfig(EvalSection):
    """What is measured on the val images, at the end and every `train.eval_every_epochs`."""

    batch_size: Annotated[int, Role.OPERATIONAL] = Field(64, ge=1)
    """Images per device in one forward pass."""
    knn: int | None = Field(None, ge=1)
    """Also the accuracy of this many nearest neighbours by the class token, where the images have labels."""
    knn_images: int | None = Field(None, ge=1)
    """Training images that can be neighbours; None is all."""
    knn_temperature: float = Field(0.07, gt=0)
    """DINO's (facebookresearch/dino eval_knn.py)."""


class PretrainConfig(RunConfig):
    """A method's class adds `method` and its own sections."""

    task: Literal["pretrain"]
    """Always `pretrain`."""
    method: str
    data: DataConfig
    eval: EvalConfig

    @model_validator(mode="after")
    def _fits_together(self) -> "PretrainConfig":
        backbone, data = self.backbone, self.data
        if backbone.window_size or backbone.rel_pos or backbone.checkpoint or backbone.weights != "random":
            raise ValueError(
                "pre-training starts from new weights, with global attention: leave backbone.checkpoint, weights, "
                "window_size and rel_pos alone"
            )
        for name in ("mean", "std"):
            values = getattr(data, name)
            if values is None and data.channels != 3:
                raise ValueError(f"data.channels={data.channels} has no usual statistics; give data.mean and data.std")
            if values is not None and len(values) != data.channels:
                raise ValueError(f"data.{name} has {len(values)} numbers for data.channels={data.channels}")
        if data.std is not None and min(data.std) <= 0:
            raise ValueError("data.std has to be above 0")
        if data.channels != 3 and (data.randaugment or data.color_jitter):
            raise ValueError(
                "data.randaugment and data.color_jitter are for RGB images (data.channels=3); set "
                "data.randaugment=null data.color_jitter=0"
            )
        if data.crop == "center" and (data.randaugment or data.color_jitter):
            raise ValueError("data.crop=center is for no augmentation; set data.randaugment=null data.color_jitter=0")
        if self.eval.knn is not None and self.eval.knn_images is not None and self.eval.knn > self.eval.knn_images:
            raise ValueError(f"eval.knn={self.eval.knn} neighbours of eval.knn_images={self.eval.knn_images}")
        return self


# --- MAE ------------------------------------------------------------------------------------------------------------


class MaskConfig(Section):
    kind: Literal["random", "block", "grid"] = "random"
    """Random patches, BEiT's rectangles, or all but one of every four (MAE Figure 6)."""
    ratio: float = Field(gt=0, lt=1)
    """Share of the patches that is masked."""
    patch_grid: int = Field(1, ge=1)
    """Side of the squares of patches that are masked together, in patches; Pixio's is 4."""


class MaeModelConfig(Section):
    target: Literal["pixel", "norm_pixel", "pca", "token", "mean_color"]
    """What is predicted of a masked patch: its pixels, those normalised by the patch's own mean and deviation, the
    coefficients of its largest principal components, its token (`tokenizer`), or the mean of each channel."""
    class_tokens: Width = 1
    """Class tokens of the encoder, each with a position; Pixio has 8. What reads the class token reads their mean."""
    positions: Literal["sincos", "learned"] = "sincos"
    """Absolute positions of encoder and decoder: MAE's fixed ones (zeros for class tokens), or learned as Pixio's."""
    pca_coefficients: Width = 96
    """`pca`: number of coefficients."""
    pca_images: int = Field(4096, ge=1)
    """Training images that the principal components are computed from."""
    loss_on: Literal["masked", "all"] = "masked"
    """Which patches the loss is on."""
    decoder_depth: Depth
    """Blocks of the decoder. 0, with `mask_token=encoder`: no decoder, a linear layer predicts from the encoder's
    tokens."""
    decoder_width: Width = Field(ge=4)
    """Width of the decoder."""
    decoder_heads: Width
    """Attention heads of the decoder."""
    mask_token: Literal["decoder", "encoder"] = "decoder"
    """`encoder`: masked patches go through the encoder as mask tokens, the slow variant of MAE Table 1 (c)."""


class TokenizerConfig(Section):
    """What turns patches into tokens, for targets of tokens."""

    kind: str | None = None
    """`kmeans`, fitted to training images before the run; or the path of a tokenizer: OpenAI's encoder.pkl, or the
    folder of a run that trained (--method dvae) or used one."""
    vocab_size: int = Field(8192, ge=2, le=2**20)
    """kmeans: number of tokens."""
    fit_images: int = Field(4096, ge=1)
    """kmeans: training images that it is fitted to."""
    patches_per_image: int = Field(100, ge=1)
    """kmeans: patches of each of them."""


class MaeConfig(PretrainConfig):
    method: Literal["mae"]
    """As in `--method`."""
    mask: MaskConfig
    model: MaeModelConfig
    tokenizer: TokenizerConfig

    @model_validator(mode="after")
    def _decoder_fits(self) -> "MaeConfig":
        if self.model.decoder_depth == 0 and self.model.mask_token == "decoder":
            raise ValueError(
                "model.decoder_depth=0 leaves masked patches without a look at the visible ones; set "
                "model.mask_token=encoder, or a decoder of one block or more"
            )
        width, heads = self.model.decoder_width, self.model.decoder_heads
        if width % 4 or width % heads:
            raise ValueError(
                f"model.decoder_width={width} has to be a multiple of 4 (position embedding) and of "
                f"model.decoder_heads={heads}"
            )
        return self


# --- BEiT -----------------------------------------------------------------------------------------------------------


class BlockMaskConfig(Section):
    ratio: float = Field(gt=0, lt=1)
    """Most of the patches that are masked; blocks may stop short of it."""
    min_patches: int = Field(ge=1)
    """Least area of a block."""
    max_patches: int | None = Field(None, ge=1)
    """Largest area of a block; None is what is left to mask."""

    @model_validator(mode="after")
    def _check(self) -> "BlockMaskConfig":
        if self.max_patches is not None and self.max_patches < self.min_patches:
            raise ValueError(f"max_patches={self.max_patches} is below min_patches={self.min_patches}")
        return self


class BeitModelConfig(Section):
    rel_pos: bool
    """A table of relative positions that all blocks share."""
    layer_scale: float | None = Field(None, gt=0)
    """LayerScale's first value; None is no LayerScale."""
    abs_pos: bool
    """A learned embedding of absolute positions."""


class BeitConfig(PretrainConfig):
    method: Literal["beit"]
    """As in `--method`."""
    mask: BlockMaskConfig
    model: BeitModelConfig
    tokenizer: TokenizerConfig


# --- supervised -----------------------------------------------------------------------------------------------------


class SupervisedConfig(PretrainConfig):
    method: Literal["supervised"]
    """As in `--method`."""
    model: ClassifierConfig


# --- MoCo v3 --------------------------------------------------------------------------------------------------------


class MocoDataConfig(DataConfig):
    augmentation: Literal["full", "crop"]
    """What a view goes through: crop, colours, blur and flip as in the released code, or `crop` and flip alone."""


class MocoModelConfig(Section):
    mlp_dim: Width
    """Hidden width of projector and predictor."""
    dim: Width
    """Width of queries and keys."""
    temperature: float = Field(gt=0)
    """Of the softmax over the keys."""
    momentum: float = Field(ge=0, lt=1)
    """Of the momentum encoder at the first step; by a cosine it is 1 at the end."""
    freeze_patch_embed: bool
    """The patch projection keeps its random weights."""


class MocoConfig(PretrainConfig):
    method: Literal["mocov3"]
    """As in `--method`."""
    data: MocoDataConfig
    model: MocoModelConfig

    @model_validator(mode="after")
    def _whole_batches_of_views(self) -> "MocoConfig":
        train, data = self.train, self.data
        if train.micro_batch == "auto" or train.micro_batch < train.global_batch:
            raise ValueError(
                f"train.micro_batch={train.micro_batch} is not train.global_batch={train.global_batch}: --method "
                "mocov3 compares all images of a step, without accumulation, and each device takes its whole part; set "
                f"train.micro_batch={train.global_batch}"
            )
        if data.color_jitter or data.randaugment:
            raise ValueError(
                "data.color_jitter and data.randaugment are not of --method mocov3, which has data.augmentation: full "
                "or crop"
            )
        if data.augmentation == "full" and data.channels != 3:
            raise ValueError("data.augmentation=full is for RGB images (data.channels=3); set data.augmentation=crop")
        return self


# --- a tokenizer ----------------------------------------------------------------------------------------------------


class DvaeModelConfig(Section):
    vocab_size: int = Field(ge=2, le=2**20)
    """Number of tokens."""
    width: Width
    """Channels of all convolutions, and of a token's embedding."""
    blocks: Depth
    """Residual blocks, of the encoder and of the decoder."""
    temperature: float = Field(gt=0)
    """Of the Gumbel-softmax."""
    kl_weight: float = Field(ge=0)
    """Weight of the KL divergence from uniform tokens."""


class DvaeConfig(PretrainConfig):
    method: Literal["dvae"]
    """As in `--method`."""
    model: DvaeModelConfig

    @model_validator(mode="after")
    def _no_encoder(self) -> "DvaeConfig":
        if self.eval.knn is not None or self.train.compile:
            raise ValueError("eval.knn and train.compile are for encoders, and --method dvae trains none")
        return self
