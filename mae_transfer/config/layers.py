"""Blocks of an encoder by name or number, as protocols of a frozen encoder read them.

Names are DINOv3's (dinov3/eval/segmentation/models/__init__.py).
"""

from typing import Annotated, Literal

from pydantic import Field

from mae_transfer.config.roles import Role
from mae_transfer.errors import UserError

Layers = Literal["last", "last_four", "four_even"] | tuple[Annotated[int, Field(ge=0)], ...]
"""By name, or 0-based numbers."""


StoredLayers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Role.OPERATIONAL]
"""0-based numbers of further blocks whose features a pass over the images stores, for runs that read one of them."""


def find_blocks(layers: Layers, depth: int, name: str) -> tuple[int, ...]:
    """0-based numbers of the blocks, ascending; UserError for one that an encoder of this depth does not have."""
    if not isinstance(layers, str):
        if not layers or list(layers) != sorted(set(layers)) or layers[-1] >= depth:
            raise UserError(
                f"probe.layers={list(layers)}: give ascending block numbers from 0 to {depth - 1} of {name}"
            )
        return layers
    if layers == "last":
        return (depth - 1,)
    if depth < 4:
        raise UserError(f"probe.layers={layers}: {name} has {depth} blocks; use last, or block numbers")
    if layers == "last_four":
        return tuple(range(depth - 4, depth))
    return (4, 11, 17, 23) if depth == 24 else tuple(depth // 4 * i - 1 for i in range(1, 5))
