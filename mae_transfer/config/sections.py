"""The typed configuration that every task shares; a task adds its own `data`, `model` and `eval` sections.

Unknown keys and values out of range are errors (`load.py` turns them into one line). Values
live in `configs/`, each with its source; the defaults here are only those that are no part of a recipe.
"""

from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from mae_transfer.config.roles import Place, Role

Beta = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(ge=1, le=2**16)]
"""Channels or units of a layer."""
Depth = Annotated[int, Field(ge=0, le=256)]
"""Layers or blocks."""
PowerOfTen = Annotated[float, Field(ge=-300, le=300)]
LARGEST_RESIZED = 2**15
"""Pixels of a side that an image may be resized to; OpenCV and Pillow fail beyond, or memory does."""


class Section(BaseModel):
    """A frozen section of the configuration; a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic takes true for 1 where a number is asked for."""
        each = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, bool) for one in each):
            annotation = cls.model_fields[str(info.field_name)].annotation
            if not _takes_bool(annotation):
                raise PydanticCustomError("no_bool", "Input should not be true or false")
        return value


def _takes_bool(annotation: object) -> bool:
    return annotation is bool or any(map(_takes_bool, get_args(annotation)))


class BackboneConfig(Section):
    """The encoder. `name`, `checkpoint` and `weights` are what a table compares; the rest is recipe."""

    name: Annotated[str, Role.COMPARED]
    """A registered name such as `mae_vit_b`, or `timm:<model>`."""
    checkpoint: Annotated[str | None, Role.COMPARED] = None
    """Path of a weights file; None takes the name's published weights from the hub cache or download."""
    checkpoint_key: Annotated[str | None, Role.COMPARED] = None
    """Which of several models in the file to take, such as `student`; None takes the layout's documented one."""
    weights: Annotated[Literal["pretrained", "random"], Role.COMPARED] = "pretrained"
    """`random` builds the encoder without weights, on request only."""
    window_size: int = Field(0, ge=0)
    """Side of the attention windows in tokens; 0 is global attention in every block."""
    num_global_blocks: int = Field(4, ge=0)
    """With windows: the last block of each of this many equal groups attends globally."""
    rel_pos: bool | Literal["per_block", "decomposed"] = False
    """Zero-initialised relative position bias: true shares a table among all windowed and one among all global blocks,
    `per_block` gives each block its own, `decomposed` ViTDet's two, for rows and columns (a backbone that brings
    its own tables keeps them anyway, and one with rotary positions takes none)."""
    window_rope: Literal["window", "image"] = "window"
    """With windows and rotary positions: make these for the `window`, as EVA-02's detector, or for the `image`."""
    drop_path: float = Field(0.0, ge=0.0, lt=1.0)
    """Stochastic depth of the last block; linear from 0 over the blocks."""
    grad_checkpointing: Annotated[bool, Role.OPERATIONAL] = False
    """Recompute each block in the backward pass: less memory, more time."""


class OptimConfig(Section):
    """The optimizer and its parameter groups."""

    kind: Literal["adamw", "sgd", "lars"] = "adamw"
    """`lars` is timm's, used as MAE's `util/lars.py`: biases and norms are neither adapted nor decayed."""
    lr: float = Field(gt=0, le=1e30)
    """Peak learning rate at the recipe's global batch; never rescaled behind the user's back."""
    weight_decay: float = Field(ge=0)
    """Of the parameters that `no_weight_decay` does not name."""
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

    kind: Literal["cosine", "step", "poly", "one_cycle"]
    """Shape of the decay after the warm-up; `one_cycle` is DINOv3's, a cosine with a warm-up of its own."""
    epochs: float | None = Field(None, gt=0)
    """Length in passes over the training set; give this or `steps`."""
    steps: int | None = Field(None, ge=1)
    """Length in optimizer steps."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Warm-up length in passes over the training set."""
    warmup_steps: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)] | None = None
    """Warm-up length in steps, maybe a fraction; overrides `warmup_epochs`."""
    warmup_factor: float = Field(0.001, ge=0, le=1)
    """Share of the lr at the first step."""
    after_warmup: Literal["continue", "restart", "multiply"] = "continue"
    """The decay runs over the whole length, as in detectron2, or (`restart`) from the end of the warm-up, as in MAE;
    `multiply` is `continue` with a warm-up that multiplies the decay, as in mmcv 0.x, instead of leading up to it."""
    milestones: tuple[float, ...] = ()
    """`step`: shares of the whole length at which the lr is multiplied by `gamma`."""
    gamma: float = Field(0.1, gt=0, le=1)
    """`step`: factor of the lr at each milestone."""
    power: float = Field(1.0, gt=0)
    """`poly`: exponent of the decay."""
    min_lr_ratio: float = Field(0.0, ge=0, lt=1)
    """`cosine` and `poly`: the lr ends at this share of the peak."""


MicroBatch: TypeAlias = Annotated[int, Field(ge=1)] | Literal["auto"]


class TrainConfig(Section):
    """The loop. The global batch belongs to the recipe; how it is split over devices and time does not."""

    global_batch: int = Field(ge=1, le=10**6)
    """Images per optimizer step over all devices."""
    micro_batch: Annotated[MicroBatch, Role.COMPARED] = 1
    """Images per device in one forward pass; accumulation is derived from it. The settings hold `norm_batch`, the
    images over which batch norm takes its statistics, in its place. `auto` is the largest that fits the GPU's memory by
    the plan (`mae-transfer plan`), chosen at the run's start and kept by a resume."""
    micro_batch_auto: Annotated[bool, Role.OPERATIONAL] = False
    """Written by the run: whether `micro_batch` was `auto`."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of training: fp32, or autocast in bf16 or fp16."""
    compile: Annotated[bool, Role.OPERATIONAL] = False
    """torch.compile the encoder; of a plain ViT each block for itself."""
    fast: Annotated[bool, Role.OPERATIONAL] = True
    """On a GPU: TF32, cuDNN's fastest convolutions and a fused AdamW in training; false for a GPU's nearest to exact
    repeats. Evaluations in fp32 have whole fp32 products either way."""
    shard: Annotated[bool, Role.OPERATIONAL] = False
    """Cut weights, gradients and optimizer states over the GPUs (FSDP2), for encoders that do not fit on one. Each
    evaluation still needs the whole weights on each GPU."""
    eval_every_epochs: Annotated[float | None, Role.OPERATIONAL] = Field(None, gt=0)
    """Evaluate during training as well as at its end."""
    checkpoint_every: Annotated[int, Role.OPERATIONAL] = Field(1000, ge=1)
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: Annotated[int, Role.OPERATIONAL] = Field(2, ge=1)
    """The newest ones that stay in the run folder."""
    log_every: Annotated[int, Role.OPERATIONAL] = Field(20, ge=1)
    """Steps between lines in log.txt (metrics.jsonl has every step)."""
    tensorboard: Annotated[bool, Role.OPERATIONAL] = False
    """Also write TensorBoard event files (needs the `tensorboard` package)."""

    @property
    def micro_batch_size(self) -> int:
        """`micro_batch` as a number; of `auto` that is not chosen yet, the most that it can be."""
        return self.global_batch if self.micro_batch == "auto" else self.micro_batch

    def with_micro_batch(self, images: int, *, auto: bool) -> "TrainConfig":
        """The same with this number. auto: it was chosen for `auto`."""
        return self.model_copy(update={"micro_batch": images, "micro_batch_auto": auto})


Workers: TypeAlias = Annotated[int, Field(ge=0, le=512)] | Literal["auto"]


class DataSection(Section):
    """What the `data` sections of all tasks hold; a task adds its own."""

    root: Place = None
    """Folder of the data set, in the layout that the task's page describes; `synthetic` makes a tiny set."""
    name: Annotated[str | None, Role.OPERATIONAL] = Field(None, min_length=1, max_length=80)
    """What tables, plots and the report call the data set; None is its folder's name, or that of a whole benchmark."""
    on_bad_image: Annotated[Literal["error", "skip"], Role.EVALUATION] = "error"
    """What to do with an image that cannot be decoded; `skip` counts and reports them. A resume may change it, since a
    bad val image may be met only after the whole training."""
    workers: Annotated[Workers, Role.OPERATIONAL] = "auto"
    """Loader processes per device; `auto` is the cores of the machine over its GPUs in use, 16 at most, and 2 on a CPU,
    whose cores train."""


class LabelledSection(DataSection):
    """What the `data` sections of tasks hold that can train on few of the labelled images."""

    fraction: float | None = Field(None, gt=0, lt=100)
    """Few labels (`--fraction`): train on this percentage of the training images."""
    draw: Annotated[int, Role.COMPARED] = Field(0, ge=0)
    """Which draw of few labels; every draw is the same on every machine, and holds that of fewer labels."""


class EvalSection(Section):
    """What the `eval` sections of all tasks hold; a task adds its own."""

    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, Role.EVALUATION] = "fp32"
    """Of the evaluation, whatever the training's: detectron2 and mmsegmentation train in mixed precision and evaluate
    in fp32. None is the training's own."""
    batch_size: Annotated[int, Role.OPERATIONAL] = Field(1, ge=1)
    """Images per device in one forward pass of the evaluation."""
    pictures: Annotated[int, Role.OPERATIONAL] = Field(8, ge=0)
    """Val images of which the run leaves pictures in its folder, always the same ones; 0 is none."""


class RunConfig(Section):
    """What every task's configuration holds; a task subclasses this with its own `data`, `model` and `eval`."""

    task: str
    """As in `--task`."""
    recipe: str
    """Name of the recipe file's recipe; part of the record."""
    preset: Literal["full", "mini", "smoke"] = "full"
    """`full` is the published recipe, `mini` a small one for one GPU, `smoke` a few steps on a few images."""
    seed: Annotated[int, Role.COMPARED] = Field(0, ge=0)
    """Of initialisation, sampling and augmentation."""
    device: Annotated[str, Role.OPERATIONAL] = "auto"
    """auto, cpu or cuda."""
    subset: int | None = Field(None, ge=1)
    """Use only this many images of each split, always the same ones."""
    backbone: BackboneConfig
    data: DataSection
    optim: OptimConfig
    schedule: ScheduleConfig
    train: TrainConfig
    eval: EvalSection
