"""DINOv2 (facebookresearch/dinov2), as released: bare, close to timm's names, patch 14, LayerScale, 37 x 37 positions.

`mask_token` is ignored. With registers, neither these nor (in timm) the class token have a position: the class token's
is added to it here, as timm's own conversion does. The giant's SwiGLU `w12`, `w3` are timm's `fc1`, `fc2`. Blocks of
training checkpoints may be nested in chunks (`blocks.<chunk>.<block>.`).
"""

import re

from mae_transfer.backbones.checkpoints import timm_names
from mae_transfer.backbones.checkpoints.layout import Converted, State, width_of

NAME = "DINOv2"
INITS = ("dinov2",)

_CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.")
_BEIT = ("q_bias", "v_bias", "relative_position_bias_table")


def detects(state: State) -> bool:
    if not any(key.startswith("blocks.") for key in state) or any(key.startswith("decoder_") for key in state):
        return False
    if any(key.endswith(_BEIT) or key.startswith(("lm_head.", "storage_tokens", "rope")) for key in state):
        return False
    own = ("mask_token", "register_tokens")
    return any(key in own or _CHUNKED.match(key) or ".mlp.w12." in key or ".mlp.w3." in key for key in state)


def convert(state: State) -> Converted:
    chunks = {match[2]: match[1] for key in state if (match := _CHUNKED.match(key))}
    gated = any(".mlp.w12." in key or ".mlp.w3." in key for key in state)

    def outer(key: str) -> str:
        if gated:
            key = key.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        if key == "reg_token":
            return "register_tokens"
        block = re.match(r"blocks\.(\d+)\.", key)
        return f"blocks.{chunks.get(block[1], '0')}.{key[7:]}" if block and chunks else key

    tensors = {_timm(key): tensor for key, tensor in state.items() if key != "mask_token"}
    width = width_of(tensors)
    without_class_position(tensors, width)
    converted = timm_names.convert(tensors).within(outer)
    converted.facts["pos_resampling"] = "antialias" if "reg_token" in tensors else "offset"
    if "mask_token" in state:
        converted.ignored["mask_token"] = "mask token of the pre-training"
        converted.promised["mask_token"] = (1, width)
    return converted


def _timm(key: str) -> str:
    key = _CHUNKED.sub(r"blocks.\2.", key).replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
    return "reg_token" if key == "register_tokens" else key


def without_class_position(tensors: State, width: int) -> None:
    """With registers: add the class token's position to it, in place."""
    cls, position = tensors.get("cls_token"), tensors.get("pos_embed")
    if "reg_token" not in tensors or cls is None or position is None:
        return
    if cls.shape == (1, 1, width) and position.ndim == 3 and position.shape[2] == width:
        tensors["cls_token"] = cls + position[:, :1]
        tensors["pos_embed"] = position[:, 1:]
