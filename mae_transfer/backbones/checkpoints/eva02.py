"""EVA-02 (baaivision/EVA, EVA-02/asuka): pre-training and fine-tuned files, close to timm's Eva.

Tables of the rotary positions (`rope.freqs_cos`, `rope.freqs_sin`, in every block again) are those of one grid and are
made anew for each. SwiGLU is `w1`, `w2`, `w3` (timm's `fc1_g`, `fc1_x`, `fc2`), or `w12`, `w3` (`fc1`, `fc2`) as
xFormers packs it; `ffn_ln` is the norm in it, `inner_attn_ln` that in attention of EVA-02-CLIP.
"""

import re

from mae_transfer.backbones.checkpoints import timm_names
from mae_transfer.backbones.checkpoints.layout import Converted, Shape, State, linear, width_of

NAME = "EVA-02"
INITS = ("eva02",)

_TABLE = re.compile(r"(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)$")
_OWN = re.compile(rf"{_TABLE.pattern}|blocks\.\d+\.(mlp\.ffn_ln|attn\.inner_attn_ln)\.")
_NAMES = {
    "mlp.w12.": "mlp.fc1.",
    "mlp.w1.": "mlp.fc1_g.",
    "mlp.w2.": "mlp.fc1_x.",
    "mlp.w3.": "mlp.fc2.",
    "mlp.ffn_ln.": "mlp.norm.",
    "attn.inner_attn_ln.": "attn.norm.",
}


def detects(state: State) -> bool:
    return any(key.startswith("blocks.") for key in state) and any(_OWN.match(key) for key in state)


def convert(state: State) -> Converted:
    width = width_of(state)
    apart = any(".attn.q_proj." in key for key in state)
    tables = [key for key in state if _TABLE.match(key)]
    shapes: list[Shape] = [tuple(state[key].shape) for key in tables]
    promised: dict[str, Shape] = dict.fromkeys(tables, max(shapes, key=shapes.count)) if shapes else {}
    ignored = dict.fromkeys(tables, "tables of rotary positions, computed anew")
    if any(key in state for key in ("mask_token", "lm_head.weight", "lm_head.bias")):
        promised |= {"mask_token": (1, 1, width), **linear(state, "lm_head", width)}
        ignored |= {key: "head of the pre-training" for key in promised if key in state and key not in ignored}
    names = {_timm(key, apart): key for key in state if key not in ignored}
    tensors = {new: state[old] for new, old in names.items()}
    converted = timm_names.convert(tensors).within(lambda name: names.get(name, _native(name, state)))
    converted.ignored |= ignored
    converted.promised |= promised
    return converted


def _timm(key: str, apart: bool) -> str:
    for old, new in _NAMES.items():
        key = key.replace(old, new)
    return re.sub(r"\.attn\.([qv])_bias$", r".attn.\1_proj.bias", key) if apart else key


def _native(name: str, state: State) -> str:
    """The file's name of a tensor that it lacks."""
    packed = any(".mlp.w12." in key for key in state)
    for old, new in _NAMES.items():
        if (old == "mlp.w12.") <= packed:
            name = name.replace(new, old)
    return re.sub(r"\.attn\.([qv])_proj\.bias$", r".attn.\1_bias", name)
