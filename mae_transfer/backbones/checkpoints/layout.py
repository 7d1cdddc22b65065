"""What a checkpoint reader is, and what it gives.

A reader is a module with NAME, `detects` and `convert`; adding a layout is adding such a file and naming it in
`loader.READERS`.
"""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

State = dict[str, Tensor]
Shape = tuple[int | None, ...]


@dataclass
class Converted:
    """An encoder's tensors by timm's VisionTransformer names, and an account of everything else in the file.

    `ignored`: key in the file -> why the encoder has no use for it. `promised`: key in the file -> the shape that the
    layout has it in, for tensors which do not go into the encoder under their own name; they are checked all the same,
    since a file that lacks one is damaged or something else. None in a shape is a size that nothing in the file backs.
    """

    tensors: State
    ignored: dict[str, str] = field(default_factory=dict)
    promised: dict[str, Shape] = field(default_factory=dict)


class Reader(Protocol):
    """One checkpoint layout."""

    NAME: str

    def detects(self, state: State) -> bool:
        """Whether a state dict (wrapper prefixes already off) is of this layout."""

    def convert(self, state: State) -> Converted:
        """Rename to timm's names; what is not recognised stays in `tensors`, where the loader refuses it."""


def linear(state: State, name: str, width: int) -> dict[str, Shape]:
    """Promise of `<name>.weight` (rows, width) and `<name>.bias` (rows,), with as many rows as both have."""
    rows = {len(state[key]) for key in (f"{name}.weight", f"{name}.bias") if key in state and state[key].ndim}
    agreed = rows.pop() if len(rows) == 1 else None
    return {f"{name}.weight": (agreed, width), f"{name}.bias": (agreed,)}


def norm(name: str, width: int) -> dict[str, Shape]:
    """Promise of a LayerNorm's two tensors."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def width_of(state: State) -> int:
    """The embed dim that most of the block norms have (0 if there are none)."""
    widths = [len(t) for key, t in state.items() if key.startswith("blocks.") and ".norm" in key and t.ndim == 1]
    return max(set(widths), key=widths.count, default=0)


def depth_of(state: State, blocks: str = "blocks") -> int:
    """Number of blocks by the highest number in a key `<blocks>.<number>.`."""
    numbers = [key.split(".")[1] for key in state if key.startswith(f"{blocks}.")]
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)
