"""The configurations of the protocols beside UperNet."""

from typing import Annotated, Literal

from pydantic import Field

from mae_transfer.config.sections import Section
from mae_transfer.tasks.ade20k.config import CropsConfig

Layers = Literal["last", "last_four", "four_even"] | tuple[Annotated[int, Field(ge=0)], ...]
"""Blocks whose patch tokens are read: by name (`layers.py`), or 0-based numbers."""


class LinearSection(Section):
    """What the linear head reads of the frozen encoder, and how."""

    layers: Layers
    """Blocks whose patch tokens are read, side by side: `last`, `last_four`, `four_even` (the last of each quarter), or
    0-based numbers."""
    final_norm: bool = True
    """They go through the weights' own norm after the blocks; false takes the blocks' output."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of whole channels that is dropped before the batch norm in training."""


class LinearConfig(CropsConfig):
    """Of the protocol linear."""

    protocol: Literal["linear"]
    """As in `--protocol`."""
    probe: LinearSection
