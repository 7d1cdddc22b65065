"""The configurations of the protocols beside fine-tuning."""

from typing import Literal

from pydantic import Field

from mae_transfer.config.layers import Layers
from mae_transfer.config.sections import Section
from mae_transfer.tasks.coco.config import CocoConfig, ModelConfig


class FrozenSection(Section):
    """What the pyramid reads of the frozen encoder."""

    layers: Layers
    """Blocks whose maps are read: `last`, `four_even` (DINOv3's: the last of each quarter, 4 11 17 23 at depth 24),
    `last_four`, or 0-based numbers. The FPN has four levels and takes four maps, or the same map for each; the simple
    pyramid takes one."""
    final_norm: bool
    """The maps of a plain ViT go through the weights' own norm after the blocks; false takes the blocks' output."""


class FrozenConfig(CocoConfig):
    """Of the protocol frozen."""

    protocol: Literal["frozen"]
    """As in `--protocol`."""
    probe: FrozenSection


class TrainedConfig(CocoConfig):
    """Of the protocol trained."""

    protocol: Literal["trained"]
    """As in `--protocol`."""


class PartialModel(ModelConfig):
    """Of the protocol partial."""

    blocks: float | None = Field(None, ge=0)
    """How many of the last blocks are trained (`--blocks`); 0.5 is the MLP of the last one, 0 freezes the encoder."""


class PartialConfig(CocoConfig):
    """Of the protocol partial."""

    protocol: Literal["partial"]
    """As in `--protocol`."""
    model: PartialModel
