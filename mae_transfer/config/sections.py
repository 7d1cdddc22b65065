"""The typed configuration that every task shares; a task adds its own `data`, `model` and `eval` sections.

Unknown keys and values out of range are errors (see `config_loading.py`, which turns them into one line). Values
live in `configs/`, each with its source; the defaults here are only those that are no part of a recipe.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Beta = Annotated[float, Field(ge=0, lt=1)]

OPERATIONAL = frozenset(
    {
        "device",
        "backbone.grad_checkpointing",
        "train.compile",
        "train.eval_every_epochs",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.tensorboard",
        "data.root",  # what the data are is known by their fingerprint
        "data.train_json",
        "data.train_images",
        "data.val_json",
        "data.val_images",
        "data.train_masks",
        "data.val_masks",
        "data.class_names",
        "data.train_list",
        "data.val_list",
        "data.val_root",
        "data.imagenet_a",
        "data.imagenet_r",
        "data.imagenet_sketch",
        "data.imagenet_c",
        "data.workers",
        "eval.batch_size",
        "eval.per_class",
        "eval.pictures",
        "probe.cache",  # the same features, kept or computed again
    }
)
"""Keys that cannot change a metric beyond rounding: a resume may change them, and no protocol holds them."""


class Section(BaseModel):
    """A frozen section of the configuration; a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class BackboneConfig(Section):
    """The encoder. `name`, `checkpoint` and `weights` are what a table compares; the rest is recipe."""

    name: str
    """A registered name such as `mae_vit_b`, or `timm:<model>`."""
    checkpoint: str | None = None
    """Path of a weights file; None takes the name's published weights from the hub cache or download."""
    checkpoint_key: str | None = None
    """Which of several models in the file to take, such as `student`; None takes the layout's documented one."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the encoder without weights, on request only."""
    window_size: int = Field(0, ge=0)
    """Side of the attention windows in tokens; 0 is global attention in every block."""
    num_global_blocks: int = Field(4, ge=0)
    """With windows: the last block of each of this many equal groups attends globally."""
    rel_pos: bool | Literal["per_block", "decomposed"] = False
    """Zero-initialised relative position bias: true shares a table among all windowed and one among all global blocks,
    `per_block` gives each block its own, `decomposed` ViTDet's two, for rows and columns (a backbone that brings
    its own tables keeps them anyway)."""
    drop_path: float = Field(0.0, ge=0.0, lt=1.0)
    """Stochastic depth of the last block; linear from 0 over the blocks."""
    grad_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, more time."""


class OptimConfig(Section):
    """The optimizer and its parameter groups."""

    kind: Literal["adamw", "sgd", "lars"] = "adamw"
    """`lars` is timm's, used as MAE's `util/lars.py`: biases and norms are neither adapted nor decayed."""
    lr: float = Field(gt=0)
    """Peak learning rate at the recipe's global batch; never rescaled behind the user's back."""
    weight_decay: float = Field(ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """`adamw` only."""
    momentum: Beta = 0.9
    """`sgd` and `lars` only."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Layer-wise lr decay of the encoder; 1.0 is none. Everything outside the encoder has the full lr."""
    no_weight_decay: tuple[
        Literal["norm", "encoder_norm", "bias", "pos_embed", "rel_pos", "token", "class_token", "layer_scale"], ...
    ] = ()
    """Kinds of parameters without weight decay."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest gradient norm; None is no clipping."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is evaluated; None is none."""


class ScheduleConfig(Section):
    """Linear warm-up, then cosine, step or poly decay, all by iteration."""

    kind: Literal["cosine", "step", "poly"]
    epochs: float | None = Field(None, gt=0)
    """Length in passes over the training set; give this or `steps`."""
    steps: int | None = Field(None, ge=1)
    """Length in optimizer steps."""
    warmup_epochs: float = Field(0.0, ge=0)
    warmup_steps: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)] | None = None
    """Warm-up length in steps, maybe a fraction; overrides `warmup_epochs`."""
    warmup_factor: float = Field(0.001, ge=0, le=1)
    """Share of the lr at the first step."""
    after_warmup: Literal["continue", "restart"] = "continue"
    """The decay runs over the whole length, as in detectron2, or (`restart`) from the end of the warm-up, as in MAE."""
    milestones: tuple[float, ...] = ()
    """`step`: shares of the whole length at which the lr is multiplied by `gamma`."""
    gamma: float = Field(0.1, gt=0, le=1)
    power: float = Field(1.0, gt=0)
    """`poly`: exponent of the decay."""
    min_lr_ratio: float = Field(0.0, ge=0, lt=1)
    """`cosine` and `poly`: the lr ends at this share of the peak."""


class TrainConfig(Section):
    """The loop. The global batch belongs to the recipe; how it is split over devices and time does not."""

    global_batch: int = Field(ge=1, le=10**6)
    """Images per optimizer step over all devices."""
    micro_batch: int = Field(1, ge=1)
    """Images per device in one forward pass; accumulation is derived from it."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    """torch.compile the encoder."""
    eval_every_epochs: float | None = Field(None, gt=0)
    """Evaluate during training as well as at its end."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(20, ge=1)
    """Steps between lines in log.txt (metrics.jsonl has every step)."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the `tensorboard` package)."""


class EvalSection(Section):
    """What the `eval` sections of all tasks hold; a task adds its own."""

    precision: Literal["fp32", "bf16", "fp16"] | None = "fp32"
    """Of the evaluation, whatever the training's: detectron2 and mmsegmentation train in mixed precision and evaluate
    in fp32. None is the training's own."""
    pictures: int = Field(8, ge=0)
    """Val images of which the run leaves pictures in its folder, always the same ones; 0 is none."""


class RunConfig(Section):
    """What every task's configuration holds; a task subclasses this with its own `data`, `model` and `eval`."""

    task: str
    recipe: str
    """Name of the recipe file's recipe; part of the record."""
    preset: Literal["full", "mini", "smoke"] = "full"
    engine: Literal["torchvision", "detectron2"] = "torchvision"
    seed: int = Field(0, ge=0)
    device: str = "auto"
    """auto, cpu or cuda."""
    subset: int | None = Field(None, ge=1)
    """Use only this many images of each split, always the same ones."""
    backbone: BackboneConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    train: TrainConfig
    eval: EvalSection
