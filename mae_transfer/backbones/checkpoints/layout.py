"""What a checkpoint reader is, what it gives, and the few things that readers share.

A reader is a module with NAME, `detects` and `convert`; adding a layout is adding such a file and naming it in
`loader.READERS` (docs/extending/checkpoint_layout.md). INITS, where a reader has it, are the initialisations of the
backbone names that `inspect` suggests for its files.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]
Shape = tuple[int | None, ...]

_OF_A_HEAD = re.compile(r"\.[qk]_norm\.")

ANY = -1
"""A size in a promised shape that may be anything."""

FINAL_NORM = "final norm, not used by the encoder"
"""Why a file's final norm is ignored, until an encoder asks for it."""


@dataclass
class Converted:
    """An encoder's tensors by timm's VisionTransformer names, and an account of everything else in the file.

    `ignored`: key in the file -> why the encoder has no use for it. `promised`: key in the file -> the shape that the
    layout has it in, for tensors which do not go into the encoder under their own name; they are checked all the same,
    since a file that lacks one is damaged or something else. None in a shape is a size that nothing in the file backs.
    `original`: timm's name -> the file's, for messages. `facts`: fields of the backbone's Spec that the file or its
    layout settles: `num_heads` must agree with the name's, the others are taken over.
    `final_norm`: the norm after the blocks, by timm's names (`norm.weight`), for exports and frozen use.
    `shared_tables`: this project's own relative position tables. `warnings`: lines for the report.
    """

    tensors: State
    ignored: dict[str, str] = field(default_factory=dict)
    promised: dict[str, Shape] = field(default_factory=dict)
    original: Callable[[str], str] = str
    facts: dict[str, Any] = field(default_factory=dict)
    final_norm: State = field(default_factory=dict)
    shared_tables: State = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def within(self, outer: Callable[[str], str]) -> "Converted":
        """The same with `outer` applied to the file's keys: for a reader that hands a part of its file to another."""
        inner = self.original
        self.ignored = {outer(key): why for key, why in self.ignored.items()}
        self.promised = {outer(key): shape for key, shape in self.promised.items()}
        self.original = lambda key: outer(inner(key))
        return self


class Reader(Protocol):
    """One checkpoint layout."""

    NAME: str

    def detects(self, state: State) -> bool:
        """Whether a state dict (wrapper prefixes already off) is of this layout, and of no other."""

    def convert(self, state: State) -> Converted:
        """Rename to timm's names; what is not recognised stays in `tensors`, where the loader refuses it."""


def renamed(state: State, names: Mapping[str, str]) -> State:
    """State by timm's names, of `names` file key -> timm's; other keys stay, marked if they are names of timm's."""
    taken = set(names.values())
    return {names.get(key, f"{key} (a second one)" if key in taken else key): tensor for key, tensor in state.items()}


def back(names: Mapping[str, str]) -> Callable[[str], str]:
    """`Converted.original` for `names` file key -> timm's."""
    inverse = {new: old for old, new in names.items()}
    return lambda key: inverse.get(key, key)


def joined(state: State, keys: tuple[str, str, str], shape: tuple[int, ...], key_part: bool) -> Tensor | None:
    """Query, key and value tensors, each of `shape`, as one; without `key_part` zeros stand for the key's.

    None if one is absent or of another shape (the audit then says which).
    """
    parts = [state.get(key) for key in keys]
    if not key_part and parts[0] is not None:
        parts[1] = torch.zeros_like(parts[0])
    whole = [part for part in parts if part is not None and part.shape == shape]
    return torch.cat(whole) if len(whole) == 3 else None


def linear(state: State, name: str, width: int) -> dict[str, Shape]:
    """Promise of `<name>.weight` (rows, width) and `<name>.bias` (rows,), with as many rows as both have."""
    rows = {len(state[key]) for key in (f"{name}.weight", f"{name}.bias") if key in state and state[key].ndim}
    agreed = rows.pop() if len(rows) == 1 else None
    return {f"{name}.weight": (agreed, width), f"{name}.bias": (agreed,)}


def several_class_tokens(state: State) -> bool:
    """Whether a state dict has more than one class token (1, n, C), as Pixio's."""
    tokens = [tensor for key, tensor in state.items() if key.split(".")[-1] == "cls_token"]
    return any(token.ndim == 3 and token.shape[1] > 1 for token in tokens)


def has(state: State, name: str) -> bool:
    """Whether a module `<name>` has its weight or its bias there."""
    return f"{name}.weight" in state or f"{name}.bias" in state


def norm(name: str, width: int, bias: bool = True) -> dict[str, Shape]:
    """Promise of a LayerNorm's two tensors; an RMSNorm has no bias."""
    return dict.fromkeys((f"{name}.weight", f"{name}.bias") if bias else (f"{name}.weight",), (width,))


def final_norm(state: State, name: str) -> State:
    """The tensors of the norm after the blocks, under timm's names."""
    found = {part: state.get(f"{name}.{part}") for part in ("weight", "bias")}
    return {f"norm.{part}": tensor for part, tensor in found.items() if tensor is not None}


def common(values: Iterable[int]) -> int:
    """The most frequent value, 0 if there is none."""
    found = list(values)
    return max(set(found), key=found.count, default=0)


def width_of(state: State, blocks: str = "blocks.") -> int:
    """The embed dim that most of the norms in the blocks have (0 if there are none); those of a head are none."""
    norms = (key for key in state if key.startswith(blocks) and "norm" in key and not _OF_A_HEAD.search(key))
    return common(len(state[key]) for key in norms if state[key].ndim == 1)


def depth_of(state: State, blocks: str = "blocks") -> int:
    """Number of blocks by the highest number in a key `<blocks>.<number>.`."""
    found = (re.match(rf"{re.escape(blocks)}\.(\d+)\.", key) for key in state)
    return max((int(match[1]) + 1 for match in found if match), default=0)
