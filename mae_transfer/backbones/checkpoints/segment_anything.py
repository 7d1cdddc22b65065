"""Segment Anything (facebookresearch/segment-anything), its image encoder, and Hugging Face's SamModel.

ViTDet's encoder (`modeling/image_encoder.py`): positions (1, H, W, C) of patches alone, no class token, no final norm,
two tables of decomposed relative positions in each block, made for its window or for the whole grid, whose width tells
the heads. The neck after it is ignored, but only if it is whole. At the prompt encoder and the mask decoder nothing is
looked at. MedSAM's files are the same.
"""

import re

from mae_transfer.backbones.checkpoints.layout import Converted, Shape, State, common, norm, renamed, width_of
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
_OTHERS = ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.")


def detects(state: State) -> bool:
    return _root(state) is not None


def convert(state: State) -> Converted:
    root = _root(state) or ""
    encoder = {key.removeprefix(root): tensor for key, tensor in state.items() if key.startswith(root)}
    encoder = renamed(encoder, {key: new for key in encoder if (new := _timm(key, root)) != key})
    outside = {key: tensor for key, tensor in state.items() if not key.startswith(root)}
    others = {f"{key} (outside {root}*)" if key in encoder else key: tensor for key, tensor in outside.items()}
    width = width_of(encoder)
    facts: dict[str, object] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "eps": 1e-6, "final_norm": False}
    facts |= {"class_token": False, "class_tokens": 1, "reg_tokens": 0, "position_prefix": 0}
    facts |= {"abs_pos": True, "rel_pos_tables": False, "decomposed_tables": True}
    promised = neck = _neck(encoder, width)
    position, patch = encoder.get("pos_embed"), encoder.get("patch_embed.proj.weight")
    if position is not None and position.ndim == 4:
        grid = (position.shape[1], position.shape[2])
        encoder["pos_embed"] = position.flatten(1, 2)
        promised = neck | _tables(encoder, grid)
        if patch is not None and patch.ndim == 4:
            facts["img_size"] = (grid[0] * patch.shape[-1], grid[1] * patch.shape[-1])
    head = common(t.shape[-1] for key, t in encoder.items() if key.endswith(DECOMPOSED_TABLES) and t.ndim)
    if head and width % head == 0:
        facts["num_heads"] = width // head

    def original(key: str) -> str:
        return key if key in others else _of_file(key, root)

    ignored = {original(key): "neck of Segment Anything, after the encoder" for key in neck if key in encoder}
    ignored |= {key: "prompts and masks of Segment Anything" for key in others if key.startswith(_OTHERS)}
    return Converted(
        {key: tensor for key, tensor in (encoder | others).items() if original(key) not in ignored},
        ignored,
        {original(key): shape for key, shape in promised.items()},
        original,
        facts,
        warnings=["no class token and no final norm, as the encoder of Segment Anything has neither"],
    )


def _root(state: State) -> str | None:
    """What the names of the encoder begin with, None in a file of something else."""
    found = (_BLOCK.match(key) for key in state)
    return next((match[1] for match in found if match), None)


def _of_file(key: str, root: str) -> str:
    for ours, theirs in _NAMES[root]:
        key = key.replace(ours, theirs)
    return root + key


def _timm(key: str, root: str) -> str:
    for ours, theirs in _NAMES[root]:
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


def _tables(encoder: State, grid: Grid) -> dict[str, Shape]:
    """Promise of the tables: those of the whole grid as they are, the others of one size of windows."""
    tables = {key: tensor.shape for key, tensor in encoder.items() if key.endswith(DECOMPOSED_TABLES) and tensor.ndim}
    whole = dict(zip(DECOMPOSED_TABLES, (2 * side - 1 for side in grid), strict=True))
    of_grid = {key: shape[0] == whole[key.rpartition(".")[2]] for key, shape in tables.items()}
    window, head = (
        common(shape[0] for key, shape in tables.items() if not of_grid[key]),
        common(shape[-1] for shape in tables.values()),
    )
    return {key: (shape[0] if of_grid[key] else window, head) for key, shape in tables.items()}
