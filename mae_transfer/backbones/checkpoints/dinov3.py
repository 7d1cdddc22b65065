"""DINOv3 (facebookresearch/dinov3) and EUPE, as released: close to timm's Eva, with periods of its rotary positions.

`storage_tokens` are timm's registers. `qkv.bias` is masked for the keys (`bias_mask`), so timm has biases of query and
value alone, or none where a file's are all zero. SwiGLU's `w1`, `w2`, `w3` are timm's `fc1_g`, `fc1_x`, `fc2`. Ignored:
`mask_token` and `local_cls_norm`, of the pre-training, and `rope_embed.periods`, which must be the usual ones (released
in bfloat16; timm computes them in float32), and EUPE's `projectors`. The number of periods tells the number of heads.
"""

import re
from typing import Any

import torch

from mae_transfer.backbones.checkpoints import timm_names
from mae_transfer.backbones.checkpoints.layout import ANY, Converted, Shape, State, depth_of, norm, width_of
from mae_transfer.errors import UserError

NAME = "DINOv3"
INITS = ("dinov3",)

_PERIODS = "rope_embed.periods"
_BASE = 100.0
_GATED = {"mlp.w1.": "mlp.fc1_g.", "mlp.w2.": "mlp.fc1_x.", "mlp.w3.": "mlp.fc2."}
_OWN = re.compile(rf"storage_tokens$|{re.escape(_PERIODS)}$|blocks\.\d+\.attn\.qkv\.bias_mask$")


def detects(state: State) -> bool:
    return any(".attn.qkv." in key for key in state) and any(_OWN.match(key) for key in state)


def convert(state: State) -> Converted:
    width, gated = width_of(state), any(".mlp.w3." in key for key in state)
    names = {key: _timm(key) for key in state}
    inverse = {new: old for old, new in names.items()}

    def outer(name: str) -> str:
        old = {new: old for old, new in _GATED.items()} if gated else {}
        for new, part in old.items():
            name = name.replace(new, part)
        name = "storage_tokens" if name == "reg_token" else name
        return inverse.get(name, re.sub(r"\.attn\.[qv]_bias$", ".attn.qkv.bias", name))

    ignored, promised = _beside(state), _promised(state, width)
    tensors: State = {}
    biases = {key: tensor for key, tensor in state.items() if key.endswith(".attn.qkv.bias")}
    masked = any(key.endswith(".attn.qkv.bias_mask") for key in state)
    zero = all(not _masked(state, key).any() for key in biases)
    for key, tensor in state.items():
        if key in biases:
            if zero:
                ignored[key] = "zeros: timm's model of these weights has no biases of query, key and value"
            elif tensor.shape == (3 * width,):
                q, k, v = _masked(state, key).chunk(3)
                if k.any() and not masked:
                    raise UserError(f"{key} has a bias of the keys, which DINOv3 masks; take the released file.")
                attn = key.removesuffix("qkv.bias")
                tensors |= {f"{attn}q_bias": q, f"{attn}v_bias": v}
        elif key not in ignored:
            tensors[names[key]] = tensor
    converted = timm_names.convert(tensors).within(outer)
    converted.ignored |= ignored
    converted.promised |= promised
    converted.facts |= {"qkv_bias": not zero, **_heads(state, width)}
    return converted


def _timm(key: str) -> str:
    for old, new in _GATED.items():
        key = key.replace(old, new)
    return "reg_token" if key == "storage_tokens" else key


def _beside(state: State) -> dict[str, str]:
    reasons = {
        "mask_token": "mask token of the pre-training",
        _PERIODS: "periods of the rotary positions, computed anew",
        "local_cls_norm.weight": "norm of the pre-training's local crops",
        "local_cls_norm.bias": "norm of the pre-training's local crops",
    }
    masks = {key: "mask of the key bias" for key in state if key.endswith(".attn.qkv.bias_mask")}
    heads = {key: "projection head of the distillation" for key in state if key.startswith("projectors.")}
    return {key: why for key, why in reasons.items() if key in state} | masks | heads


def _promised(state: State, width: int) -> dict[str, Shape]:
    promised: dict[str, Shape] = {_PERIODS: (ANY,)}
    if "mask_token" in state:
        promised["mask_token"] = (1, width)
    if any(key.startswith("local_cls_norm.") for key in state):
        promised |= norm("local_cls_norm", width)
    for part in ("bias", "bias_mask"):
        if any(key.endswith(f".attn.qkv.{part}") for key in state):
            promised |= {f"blocks.{i}.attn.qkv.{part}": (3 * width,) for i in range(depth_of(state))}
    return promised


def _masked(state: State, key: str) -> Any:
    mask = state.get(f"{key}_mask")
    return state[key] if mask is None or mask.shape != state[key].shape else state[key] * mask.to(state[key].dtype)


def _heads(state: State, width: int) -> dict[str, int]:
    """Heads by the periods, one for each four channels of a head; raises UserError for other periods than the usual."""
    periods = state.get(_PERIODS)
    if periods is None:
        return {}
    count = periods.numel()
    usual = _BASE ** (torch.arange(count, dtype=torch.float32) / max(count, 1))
    fits = periods.ndim == 1 and count > 1 and width % (4 * count) == 0
    if not fits or not torch.allclose(periods.float(), usual, rtol=1e-2):
        raise UserError(f"{_PERIODS} are not those of base {_BASE:g}, which timm's models of these weights have.")
    return {"num_heads": width // (4 * count)}
