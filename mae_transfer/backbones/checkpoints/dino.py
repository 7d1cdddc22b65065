"""The teacher or student of self-distillation: DINO and iBOT training checkpoints, DINOv2's (facebookresearch).

`backbone.*` is the encoder, in DINO's and iBOT's timm names or DINOv2's own; `head.*`, `dino_head.*` and `ibot_head.*`
are of the pre-training (iBOT's `head` ends in a second layer for patches, `last_layer2`, also where both share their
weights). iBOT's student has a `masked_embed`. Which of teacher and student is read is the container's
matter: `state_dict.unwrap` takes the teacher unless told otherwise.
"""

import re

from mae_transfer.backbones.checkpoints import dinov2, timm_names
from mae_transfer.backbones.checkpoints.layout import Converted, Shape, State, linear, width_of

NAME = "DINO / iBOT / DINOv2 training"
INITS = ("dino", "dinov2")

_BACKBONE = "backbone."
_HEADS = ("head", "dino_head", "ibot_head")


_MARK = re.compile(r"(backbone\.)?masked_embed$|(head|dino_head|ibot_head)\.(mlp\.\d|last_layer)")


def detects(state: State) -> bool:
    encoder = any(key.startswith(("blocks.", f"{_BACKBONE}blocks.", f"{_BACKBONE}patch_embed.")) for key in state)
    return encoder and any(_MARK.match(key) for key in state)


def convert(state: State) -> Converted:
    prefix = "" if "masked_embed" in state else _BACKBONE
    backbone = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    embed = backbone.pop("masked_embed", None)
    reader = dinov2 if dinov2.detects(backbone) else timm_names
    converted = reader.convert(backbone).within(lambda key: prefix + key)
    converted.facts.setdefault("pos_resampling", "offset")
    width = width_of(converted.tensors)
    if embed is not None:
        converted.ignored[f"{prefix}masked_embed"] = "mask token of the pre-training"
        converted.promised[f"{prefix}masked_embed"] = (1, width)
    for key, tensor in state.items():
        if prefix and key.split(".")[0] in _HEADS:
            converted.ignored[key] = "projection head of the pre-training"
        elif prefix and not key.startswith(prefix):
            converted.tensors[key] = tensor
    for name in _HEADS:
        if prefix and any(key.startswith(f"{name}.") for key in state):
            converted.promised |= _head(state, name, width)
    return converted


def _head(state: State, name: str, width: int) -> dict[str, Shape]:
    """Linear layers 0, 2, 4, then a weight-normalised one."""
    promised: dict[str, Shape] = {}
    rows: int | None = width
    for layer in (0, 2, 4):
        layer_shapes = linear(state, f"{name}.mlp.{layer}", rows or 0)
        promised |= layer_shapes
        rows = layer_shapes[f"{name}.mlp.{layer}.bias"][0]
    for last in (f"{name}.last_layer", f"{name}.last_layer2"):
        if last.endswith("2") and not any(key.startswith(f"{last}.") for key in state):
            continue
        new = f"{last}.parametrizations.weight.original"
        old = (f"{last}.weight_g", f"{last}.weight_v")
        scale, direction = (f"{new}0", f"{new}1") if any(key.startswith(new) for key in state) else old
        outputs = {len(state[key]) for key in (scale, direction) if key in state and state[key].ndim}
        agreed = outputs.pop() if len(outputs) == 1 else None
        promised |= {scale: (agreed, 1), direction: (agreed, rows)}
    return promised
