"""BEiT, native (microsoft/unilm `beit`), data2vec-vision (a copy of its code) and timm's Beit: the same names.

q_bias and v_bias become one qkv.bias whose key part is zero (a key bias adds the same to all logits of a query, which
softmax cannot see); gamma_1 and gamma_2 become LayerScale; each block keeps its relative position table. The one table
that a pre-training checkpoint shares (`rel_pos_bias`) is copied to every block, as BEiT's own fine-tuning does.
"""

import re

import torch

from mae_transfer.backbones.checkpoints import timm_names
from mae_transfer.backbones.checkpoints.layout import Converted, Shape, State, depth_of, linear, width_of

NAME = "BEiT"
INITS = ("beit",)

_TABLE = "relative_position_bias_table"
_SHARED = f"rel_pos_bias.{_TABLE}"
_INDEX = "relative_position_index"


def detects(state: State) -> bool:
    marked = any(key.endswith((".q_bias", ".v_bias", _TABLE)) for key in state)
    return marked and any(key.startswith("blocks.") for key in state) and not timm_names.eva(state)


def convert(state: State) -> Converted:
    depth, width = depth_of(state), width_of(state)
    ignored = {key: "index, computed anew" for key in state if key.endswith(f".{_INDEX}")}
    ignored |= {
        key: "head of the pre-training" for key in ("mask_token", "lm_head.weight", "lm_head.bias") if key in state
    }
    promised: dict[str, Shape] = {"mask_token": (1, 1, width)} if "mask_token" in state else {}
    if any(key.startswith("lm_head.") for key in state):
        promised |= linear(state, "lm_head", width)
    promised |= _per_block(state, depth, width)

    tensors: State = {}
    for key, tensor in state.items():
        block, _, name = key.rpartition(".")
        if key in ignored:
            continue
        if name in ("q_bias", "v_bias"):
            q, v = state.get(f"{block}.q_bias"), state.get(f"{block}.v_bias")
            if q is not None and v is not None and q.shape == v.shape == (width,):
                tensors[f"{block}.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
        elif name in ("gamma_1", "gamma_2"):
            tensors[f"{block}.ls{name[-1]}.gamma"] = tensor
        elif key == _SHARED:
            tensors |= {f"blocks.{i}.attn.rel_pos_table": tensor for i in range(depth)}
        elif name == _TABLE:
            tensors[f"{block}.rel_pos_table"] = tensor
        else:
            tensors[key] = tensor
    per_block = any(key.startswith("blocks.") and key.endswith(_TABLE) for key in state)
    scaled = any(".gamma_" in key for key in state)

    def original(key: str) -> str:
        if key.endswith(".rel_pos_table"):
            return key.replace("rel_pos_table", _TABLE) if per_block else _SHARED
        return re.sub(r"ls([12])\.gamma$", r"gamma_\1", key) if scaled else key

    converted = timm_names.convert(tensors).within(original)
    converted.ignored |= ignored
    converted.promised |= promised
    return converted


def _per_block(state: State, depth: int, width: int) -> dict[str, Shape]:
    shapes: list[Shape] = [tuple(tensor.shape) for key, tensor in state.items() if key.endswith(_TABLE)]
    promised: dict[str, Shape] = {}
    for i in range(depth):
        promised |= {f"blocks.{i}.attn.{name}": (width,) for name in ("q_bias", "v_bias")}
        if _SHARED not in state and shapes:
            promised[f"blocks.{i}.attn.{_TABLE}"] = max(set(shapes), key=shapes.count)
        if any(key.endswith(".gamma_1") for key in state):
            promised |= {f"blocks.{i}.{name}": (width,) for name in ("gamma_1", "gamma_2")}
    return promised
