"""Segment Anything (facebookresearch/segment-anything), its image encoder: official, Hugging Face's SamModel, timm's.

ViTDet's encoder (`modeling/image_encoder.py`): positions (1, H, W, C) of patches alone, no class token, no final norm,
two tables of decomposed relative positions in each block, made for its window or for the whole grid, whose width tells
the heads. The neck after it is ignored, but only if it is whole. At the prompt encoder and the mask decoder nothing is
looked at. MedSAM's files are the same.

timm's `samvit_*` files (`vision_transformer_sam.py`) may have a classifier. A neck of one LayerNorm is a final norm;
such a model has no absolute positions, and its largest tables tell the grid.
"""

import re

from mae_transfer.backbones.checkpoints.layout import (
    FINAL_NORM,
    Converted,
    Shape,
    State,
    common,
    final_norm,
    has,
    linear,
    norm,
    renamed,
    width_of,
)
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.positions.tables import DECOMPOSED_TABLES
from mae_transfer.backbones.registry import IMAGENET_MEAN, IMAGENET_STD

NAME = "Segment Anything"
INITS = ("own",)

_OFFICIAL = ((".mlp.fc1.", ".mlp.lin1."), (".mlp.fc2.", ".mlp.lin2."))
_HUGGING_FACE = (
    ("neck.0.", "neck.conv1."),
    ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."),
    ("neck.3.", "neck.layer_norm2."),
    ("patch_embed.proj.", "patch_embed.projection."),
    ("blocks.", "layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    *_OFFICIAL,
)
_NAMES = {"image_encoder.": _OFFICIAL, "vision_encoder.": _HUGGING_FACE, "": _OFFICIAL}
"""Start of the encoder's keys -> parts of timm's names and the file's own (transformers `convert_sam_to_hf.py`)."""
_BLOCK = re.compile(r"(image_encoder\.(?=blocks)|vision_encoder\.(?=layers)|(?=blocks))\w+\.\d+\.mlp\.lin[12]\.")
_TIMM_TABLE = re.compile(r"blocks\.\d+\.attn\.rel_pos_[hw]$")
_OTHERS = ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.")


def detects(state: State) -> bool:
    return _root(state) is not None or _is_timms(state)


def convert(state: State) -> Converted:
    root, timms = _root(state) or "", _is_timms(state)
    names = () if timms else _NAMES[root]
    encoder = {key.removeprefix(root): tensor for key, tensor in state.items() if key.startswith(root)}
    encoder = renamed(encoder, {key: new for key in encoder if (new := _timm(key, names)) != key})
    outside = {key: tensor for key, tensor in state.items() if not key.startswith(root)}
    others = {f"{key} (outside {root}*)" if key in encoder else key: tensor for key, tensor in outside.items()}
    width = width_of(encoder)
    normed = timms and has(encoder, "neck")
    facts: dict[str, object] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "final_norm": normed}
    facts |= {"eps": 1e-5 if timms else 1e-6, "final_eps": 1e-6 if normed else None}
    facts |= {"class_token": False, "class_tokens": 1, "reg_tokens": 0, "position_prefix": 0}
    facts |= {"abs_pos": "pos_embed" in encoder or not normed, "rel_pos_tables": False, "decomposed_tables": True}
    neck = norm("neck", width) if normed else _neck(encoder, width)
    classifier = _classifier(encoder, neck, width) if timms else {}
    promised = neck | classifier
    position, patch = encoder.get("pos_embed"), encoder.get("patch_embed.proj.weight")
    grid = _grid_of_tables(encoder) if normed else None
    if position is not None and position.ndim == 4:
        grid = (position.shape[1], position.shape[2])
        encoder["pos_embed"] = position.flatten(1, 2)
    if grid is not None:
        promised |= _tables(encoder, grid)
        if patch is not None and patch.ndim == 4:
            facts["img_size"] = (grid[0] * patch.shape[-1], grid[1] * patch.shape[-1])
    head = common(t.shape[-1] for key, t in encoder.items() if key.endswith(DECOMPOSED_TABLES) and t.ndim)
    if head and width % head == 0:
        facts["num_heads"] = width // head

    def original(key: str) -> str:
        return key if key in others else _of_file(key, root, names)

    why = FINAL_NORM if normed else "neck of Segment Anything, after the encoder"
    ignored = {original(key): why for key in neck if key in encoder}
    ignored |= {key: "classifier" for key in classifier if key in encoder}
    ignored |= {key: "prompts and masks of Segment Anything" for key in others if key.startswith(_OTHERS)}
    lacks = "no class token" if normed else "no class token and no final norm"
    return Converted(
        {key: tensor for key, tensor in (encoder | others).items() if original(key) not in ignored},
        ignored,
        {original(key): shape for key, shape in promised.items()},
        original,
        facts,
        final_norm(encoder, "neck") if normed else {},
        warnings=[f"{lacks}, as the encoder of Segment Anything has {'none' if normed else 'neither'}"],
    )


def _is_timms(state: State) -> bool:
    return _root(state) is None and any(_TIMM_TABLE.match(key) for key in state)


def _root(state: State) -> str | None:
    """What the names of the encoder begin with, None in a file of something else."""
    found = (_BLOCK.match(key) for key in state)
    return next((match[1] for match in found if match), None)


def _of_file(key: str, root: str, names: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in names:
        key = key.replace(ours, theirs)
    return root + key


def _timm(key: str, names: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in names:
        key = key.replace(theirs, ours)
    return key


def _neck(encoder: State, width: int) -> dict[str, Shape]:
    """Promise of the neck, of any number of channels; empty if the file has none of it."""
    found = [tensor for key, tensor in encoder.items() if key.startswith("neck.")]
    if not found:
        return {}
    channels = common(len(tensor) for tensor in found if tensor.ndim)
    convolutions: dict[str, Shape] = {
        "neck.0.weight": (channels, width, 1, 1),
        "neck.2.weight": (channels, channels, 3, 3),
    }
    return convolutions | norm("neck.1", channels) | norm("neck.3", channels)


def _classifier(encoder: State, neck: dict[str, Shape], width: int) -> dict[str, Shape]:
    """Promise of timm's classifier, after the neck or, without one, the encoder."""
    return linear(encoder, "head.fc", neck.get("neck.3.weight", (width,))[0] or 0) if has(encoder, "head.fc") else {}


def _sizes(encoder: State) -> dict[str, list[int]]:
    """Rows of the tables of each block's attention."""
    sizes: dict[str, list[int]] = {}
    for key, tensor in encoder.items():
        if key.endswith(DECOMPOSED_TABLES) and tensor.ndim == 2:
            sizes.setdefault(key.rpartition(".")[0], []).append(len(tensor))
    return sizes


def _grid_of_tables(encoder: State) -> Grid | None:
    """The whole grid, of the blocks without windows."""
    rows = [
        max((len(t) for key, t in encoder.items() if key.endswith(name) and t.ndim == 2), default=0)
        for name in DECOMPOSED_TABLES
    ]
    return ((rows[0] + 1) // 2, (rows[1] + 1) // 2) if all(rows) else None


def _tables(encoder: State, grid: Grid) -> dict[str, Shape]:
    """Promise of the tables: both of a block are of the whole grid, or of windows of one size, which are square."""
    tables = {key: tensor for key, tensor in encoder.items() if key.endswith(DECOMPOSED_TABLES) and tensor.ndim}
    whole = dict(zip(DECOMPOSED_TABLES, (2 * side - 1 for side in grid), strict=True))
    sizes = _sizes(encoder)
    windowed = {attn for attn, rows in sizes.items() if any(size not in whole.values() for size in rows)}
    window = common(max(sizes[attn]) for attn in windowed)
    head = common(tensor.shape[-1] for tensor in tables.values())
    promised: dict[str, Shape] = {}
    for key in tables:
        attn, _, name = key.rpartition(".")
        promised[key] = (window if attn in windowed else whole[name], head)
    return promised
