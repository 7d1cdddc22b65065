"""timm's NaFlexVit as a plain ViT: the same blocks, with the embeddings under `embeds.`.

The patch embedding is a linear layer of a patch's pixels, row by row with the channels last (or a convolution), and
positions (1, h, w, C) are of patches alone. Factorised or rotary positions, which NaFlexVit may have, are not built.
"""

import math

from torch import Tensor

from mae_transfer.backbones.checkpoints import timm_names
from mae_transfer.backbones.checkpoints.layout import Converted, State

NAME = "timm NaFlexVit"

_EMBEDS = "embeds."
_CHANNELS = 3
_NAMES = {
    "proj.weight": "patch_embed.proj.weight",
    "proj.bias": "patch_embed.proj.bias",
    "pos_embed": "pos_embed",
    "cls_token": "cls_token",
    "reg_token": "reg_token",
}


def detects(state: State) -> bool:
    return any(key.startswith(_EMBEDS) for key in state) and any(key.startswith("blocks.") for key in state)


def convert(state: State) -> Converted:
    names = {_EMBEDS + old: new for old, new in _NAMES.items()}
    inverse = {new: old for old, new in names.items()}
    tensors: State = {}
    for key, tensor in state.items():
        new = f"{key} (no embedding)" if key in inverse else names.get(key, key)
        tensors[new] = tensor
    facts: dict[str, object] = {"position_prefix": 0, "pos_resampling": "antialias"}
    weight, position = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    if weight is not None:
        weight = tensors["patch_embed.proj.weight"] = _as_convolution(weight)
    if position is not None and position.ndim == 4:
        tensors["pos_embed"] = position.flatten(1, 2)
        if weight is not None and weight.ndim == 4:
            facts["img_size"] = tuple(side * weight.shape[-1] for side in position.shape[1:3])
    if "cls_token" not in tensors and "reg_token" not in tensors:
        facts |= {"class_token": False}
    converted = timm_names.convert(tensors).within(lambda key: inverse.get(key, key))
    converted.facts |= facts
    return converted


def _as_convolution(weight: Tensor) -> Tensor:
    """(C, p * p * 3) -> (C, 3, p, p); what is no such matrix stays as it is."""
    side = math.isqrt(weight.shape[-1] // _CHANNELS) if weight.ndim == 2 else 0
    if weight.ndim != 2 or side * side * _CHANNELS != weight.shape[1]:
        return weight
    return weight.unflatten(1, (side, side, _CHANNELS)).permute(0, 3, 1, 2)
