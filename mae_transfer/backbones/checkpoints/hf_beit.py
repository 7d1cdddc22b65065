"""Hugging Face BEiT and data2vec-vision, in old names and those of transformers >= 5.

No key bias (zeros stand for it), LayerScale `lambda_1`, `lambda_2`; relative position tables per block or one shared,
which is copied to every block. The final norm is `layernorm`, or `pooler.layernorm` with mean pooling.
"""

import re

from mae_transfer.backbones.checkpoints import hf_names, hf_vit
from mae_transfer.backbones.checkpoints.layout import Converted, State, common, depth_of, has, width_of
from mae_transfer.backbones.positions.tables import TABLE

NAME = "Hugging Face BEiT / data2vec-vision"
INITS = ("beit",)

_BIAS = "relative_position_bias_table"
_INDEX = "relative_position_index"


def detects(state: State) -> bool:
    marked = any(key.endswith((".lambda_1", ".lambda_2", _BIAS)) for key in state)
    return hf_names.is_hugging_face(state) and marked


def convert(state: State) -> Converted:
    root, stem = hf_names.root_of(state), hf_names.stem_of(state)
    width, depth = width_of(state, stem), depth_of(state, stem)
    names = dict(hf_vit.block_names(state))
    if any(".lambda_" in key for key in state):
        names |= {"lambda_1": "ls1.gamma", "lambda_2": "ls2.gamma"}
    tables = [key for key in state if key.endswith(_BIAS)]
    per_block = next((match[1] for key in tables if (match := _within(stem).match(key))), None)
    own = {f"{stem}.{i}.{per_block}": f"blocks.{i}.attn.{TABLE}" for i in range(depth)} if per_block else {}
    converted = hf_names.convert(state, names, width, key_bias=False, own=own)
    if not per_block:
        new = f"{root}shared_position_bias.{_BIAS}"
        default = new if hf_names.new_names(state) else f"{root}encoder.relative_position_bias.{_BIAS}"
        shared = next(iter(tables), default)
        if shared in converted.tensors:
            table = converted.tensors.pop(shared)
            converted.tensors |= {f"blocks.{i}.attn.{TABLE}": table for i in range(depth)}
        inner = converted.original
        converted.original = lambda key: shared if key.endswith(TABLE) else inner(key)
    shapes = [tuple(state[key].shape) for key in own if key in state]
    if shapes:
        rows = common(shape[0] for shape in shapes if len(shape) == 2)
        heads = common(shape[1] for shape in shapes if len(shape) == 2)
        converted.promised |= dict.fromkeys(own, (rows, heads))
    for key in [key for key in state if key.endswith(_INDEX)]:
        hf_names.ignore(converted, state, {key: tuple(state[key].shape)}, "index, computed anew")
    for name in ("layernorm", f"{root}layernorm", f"{root}pooler.layernorm"):
        if has(state, name):
            hf_names.ignore_norm(converted, state, name, width)
    for name in ("classifier", "lm_head"):
        hf_names.ignore_linear(converted, state, name, width, "classifier or head of the pre-training")
    mask = f"{root}embeddings.mask_token"
    if mask in state:
        hf_names.ignore(converted, state, {mask: (1, 1, width)}, "mask token of the pre-training")
    converted.facts |= {"eps": hf_vit.EPS}
    return converted


def _within(stem: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(stem)}\.\d+\.(.*{_BIAS})")
